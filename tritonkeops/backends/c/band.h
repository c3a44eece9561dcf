/* A call over a band of pairs: low <= j - i <= high. */
#include "pattern.h"

static int64_t tiles_of(const Call *call) { return (call->rows + LANES - 1) / LANES; }

static int64_t rows_of(const Call *call, int64_t tile, int64_t *first) {
  *first = tile * LANES;
  return at_most(LANES, call->rows - *first);
}

/* A row j, or the next one that there is. */
static int64_t clipped(const Call *call, int64_t j) { return j < 0 ? 0 : at_most(j, call->cols); }

/* Rows j that the band holds for some rows i of the tile, for all of them, and again for some. */
static void fold_tile(const Call *call, int64_t tile, int64_t first, int64_t count, Scratch *s) {
  (void)tile;
  for (int l = 0; l < LANES; l++) {
    const int64_t row = first + at_most(l, count - 1);
    s->rows.from[l] = (idx_t)clipped(call, row + call->pattern->low);
    s->rows.to[l] = (idx_t)clipped(call, row + call->pattern->high + 1);
  }
  const int64_t begin = s->rows.from[0], end = s->rows.to[LANES - 1];
  const int64_t inner = at_most(s->rows.from[LANES - 1], end), outer = s->rows.to[0] > inner ? s->rows.to[0] : inner;
  fold_blocks(s, fold_edge, begin, inner);
  fold_blocks(s, fold, inner, outer);
  fold_blocks(s, fold_edge, outer, end);
}
