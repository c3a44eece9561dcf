"""Speed: named cases (`cases`), who computes them (`peers`), and their timing in one run (`compare`)."""
