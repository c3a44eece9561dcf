/* A call over lists: row i of the result counts the rows j of its own list. A tile is folded place by place. */
#include "pattern.h"

static int64_t tiles_of(const Call *call) { return (call->rows + LANES - 1) / LANES; }

static int64_t rows_of(const Call *call, int64_t tile, int64_t *first) {
  *first = tile * LANES;
  return at_most(LANES, call->rows - *first);
}

static void fold_tile(const Call *call, int64_t tile, int64_t first, int64_t count, Scratch *s) {
  (void)tile;
  const int64_t *start = call->pattern->start;
  int64_t longest = 0;
  for (int l = 0; l < LANES; l++) {
    const int64_t row = first + at_most(l, count - 1), length = start[row + 1] - start[row];
    s->rows.from[l] = 0;
    s->rows.to[l] = (idx_t)length;
    s->rows.list[l] = (const idx_t *)call->pattern->list + start[row];
    longest = length > longest ? length : longest;
  }
  fold_blocks(s, fold, 0, longest);
}
