"""Text in: the syntax tree, the parser that makes it, and the inference that turns it into formula IR."""
