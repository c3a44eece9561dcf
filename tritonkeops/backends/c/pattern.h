/* How a kernel's parts make a call over a pattern of pairs: as tiles.h does for all pairs. ranges.h, band.h and lists.h
 * include this; they tell which rows i a tile has (rows_of) and against which rows j it is folded (fold_tile).
 *
 * A task is one tile of one batch entry. */

typedef struct {
  Inputs in;
  Rows rows;
  Acc acc, part;
  int64_t held; /* rows j that are folded into `part` */
} Scratch;

typedef void (*Fold)(const Inputs *in, const Rows *r, int64_t begin, int64_t end, Acc *acc);

static int64_t tiles_of(const Call *call);
static int64_t rows_of(const Call *call, int64_t tile, int64_t *first);
static void fold_tile(const Call *call, int64_t tile, int64_t first, int64_t count, Scratch *s);

static void close_block(Scratch *s) {
  if (s->held) merge(&s->acc, &s->part);
  start(&s->part);
  s->held = 0;
}

/* Fold rows j, in blocks that may span calls: partial sums keep rounding errors small. */
static void fold_blocks(Scratch *s, Fold fold, int64_t begin, int64_t end) {
  if (BLOCK_J == 0) {
    if (begin < end) fold(&s->in, &s->rows, begin, end, &s->acc);
    return;
  }
  while (begin < end) {
    const int64_t stop = at_most(end, begin + BLOCK_J - s->held);
    fold(&s->in, &s->rows, begin, stop, &s->part);
    s->held += stop - begin;
    if (s->held == BLOCK_J) close_block(s);
    begin = stop;
  }
}

static int pattern_task(const Call *call, int64_t task, void *scratch, void *shared) {
  (void)shared;
  Scratch *s = scratch;
  const int64_t entry = task / tiles_of(call), tile = task % tiles_of(call);
  int64_t first;
  const int64_t count = rows_of(call, tile, &first);
  bind(call, entry, &s->in);
  prologue(&s->in, first, count, &s->rows);
  start(&s->acc);
  s->held = 0;
  close_block(s);
  fold_tile(call, tile, first, count, s);
  close_block(s);
  finish(call, &s->in, &s->rows, &s->acc, entry * call->rows + first, count);
  return 0;
}

/* The entry point. Returns 0, or 1 where memory ran out. */
int run(const Call *call, int threads) {
  return share(call, pattern_task, call->batch * tiles_of(call), threads, sizeof(Scratch), NULL);
}
