/* A call over blocks of pairs: a table holds the tiles of rows i, each with spans of rows j that count for all of them. */
#include "pattern.h"

static int64_t tiles_of(const Call *call) { return call->pattern->tiles; }

static int64_t rows_of(const Call *call, int64_t tile, int64_t *first) {
  *first = call->pattern->tile[4 * tile];
  return call->pattern->tile[4 * tile + 1];
}

static void fold_tile(const Call *call, int64_t tile, int64_t first, int64_t count, Scratch *s) {
  (void)first, (void)count;
  const int64_t *t = call->pattern->tile + 4 * tile, *span = call->pattern->span;
  int64_t total = 0;
  for (int64_t n = t[2]; n < t[3]; n++) {
    fold_blocks(s, fold, span[2 * n], span[2 * n + 1]);
    total += span[2 * n + 1] - span[2 * n];
  }
  for (int l = 0; l < LANES; l++) s->rows.from[l] = 0, s->rows.to[l] = (idx_t)at_most(total, call->cols);
}
