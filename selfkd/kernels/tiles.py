"""The row work in Triton: one program a row, which walks the vocabulary in tiles.

Logits are float32. Rows are padded with -inf to a multiple of ROW, so that no load needs a mask:
`count` includes that. Logarithms are binary, as the hardware's. Summands carry a multiple of q - p,
as in measures.py.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportReturnType=false
import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e30)
"""Log-probabilities below this count as this, so that 0 times a log-probability is 0."""
LN2 = tl.constexpr(0.6931471805599453)
FORWARD_KL, REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL, TVD = (tl.constexpr(i) for i in range(6))
"""The places of measures.KINDS."""

INTERPRETED = triton.knobs.runtime.interpret
ROW = 128 if INTERPRETED else 2048
SHAPES = ((ROW, 4),) if INTERPRETED else ((1024, 4), (1024, 8), (ROW, 4), (ROW, 8), (ROW, 16))
PARTS = 1 if INTERPRETED else 32
"""Programs that share a row, at most. As they wait for each other all must find room on a GPU, and
32 do on its smallest slice. Interpreted, they run one after the other and cannot wait."""


def config(tile: int, warps: int, **parts: int) -> triton.Config:
    return triton.Config({"TILE": tile, "enable_fp_fusion": True, **parts}, num_warps=warps)


CONFIGS = [config(*shape) for shape in SHAPES]
SHARED = (
    [config(ROW, 4, PARTS=PARTS)]
    if INTERPRETED
    else [config(1024, 8, PARTS=16), config(1024, 4, PARTS=32), config(2048, 8, PARTS=16)]
)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0; the polynomial is Chebyshev's, to 5e-9."""
    series = x * 1.1237151e-3 + 8.1900032e-3
    series = series * x + 4.1630242e-2
    series = series * x + 1.6666245e-1
    series = series * x + 4.9999982e-1
    series = series * x + 1.0
    return tl.where(x > -0.5, series * x, tl.exp2(x * (1 / LN2)) - 1.0)


@triton.jit
def log1p(x, EVEN: tl.constexpr):
    """log(1 + x) for -1 < x <= 0, or -0.5 <= x if `EVEN`; below that 1 + x is exact."""
    series = x * -1.7770182 - 2.555768
    series = series * x - 2.049732
    series = series * x - 6.3501287e-1
    series = series * x - 3.5381535e-1
    series = series * x + 1.7321175e-1
    series = series * x - 2.5216985e-1
    series = series * x + 3.3324498e-1
    series = series * x - 5.0000137e-1
    series = series * x + 1.0
    if EVEN:
        return series * x
    else:
        return tl.where(x > -0.5, series * x, tl.log2(1.0 + x) * LN2)


@triton.jit
def exponentials(row, first, end, factor, TILE: tl.constexpr):
    """Of a part of a row: the largest logit, and the sum of exponentials relative to it.

    Two walks, as the second finds the part in the cache; one would have to rescale its sum.
    """
    tops = tl.full([TILE], FLOOR, tl.float32)
    for start in range(first, end, TILE):
        tops = tl.maximum(tops, tl.load(row + start + tl.arange(0, TILE)))
    top = tl.max(tops, 0)
    totals = tl.zeros([TILE], tl.float32)
    for start in range(first, end, TILE):
        totals += tl.exp2((tl.load(row + start + tl.arange(0, TILE)) - top) * factor)
    return top, tl.sum(totals, 0)


@triton.jit
def normalizer(tops, totals, factor):
    """Largest logit, and the binary logarithm of the sum of exponentials relative to it.

    Given the same of parts of the row. The logarithm is taken in float64, once a row: the fast one
    is off by more than the divergence of close models.
    """
    top = tl.max(tops, 0)
    total = tl.sum(totals * tl.exp2((tops - top) * factor), 0)
    return top, tl.log2(total.to(tl.float64)).to(tl.float32)


@triton.jit
def row_normalizer(row, count, factor, TILE: tl.constexpr):
    """Of a row too long for the cache, in one walk: every lane rescales its own sum."""
    tops = tl.full([TILE], FLOOR, tl.float32)
    totals = tl.zeros([TILE], tl.float32)
    for start in range(0, count, TILE):
        x = tl.load(row + start + tl.arange(0, TILE))
        rise = x - tops
        ratio = tl.exp2(-tl.abs(rise) * factor)
        totals = tl.where(rise > 0, totals * ratio + 1.0, totals + ratio)
        tops = tl.maximum(tops, x)
    return normalizer(tops, totals, factor)


@triton.jit
def read(parts, figure, PARTS: tl.constexpr):
    """What the programs of a row stored, past the first cache, which does not see their writes."""
    return tl.load(parts + figure * PARTS + tl.arange(0, PARTS), cache_modifier=".cg")


@triton.jit
def wait(counter, PARTS: tl.constexpr):
    """Until all programs of a row have come here; what they stored can then be read."""
    if PARTS > 1:
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="acq_rel")
        while tl.atomic_add(counter, 0, sem="acquire") < PARTS:
            pass
        tl.debug_barrier()


@triton.jit
def log2_softmax(x, top, log_sum, factor):
    """Takes NaN for FLOOR: who calls looks at `log_sum`, which is NaN if any logit is."""
    return tl.maximum((x - top) * factor - log_sum, FLOOR)


@triton.jit
def summand(gap, p, q, share, KIND: tl.constexpr, EVEN: tl.constexpr):
    """Of the divergence; and q times its derivative by q, up to a multiple of q.

    gap: log p - log q. EVEN: whether the mixture is half and half.
    """
    excess = q - p
    if KIND == FORWARD_KL:
        return p * gap + excess, -p
    elif KIND == REVERSE_KL:
        return -q * gap - excess, -q * gap
    elif KIND == TVD:
        half = 0.5 * q
        return 0.5 * tl.abs(excess), tl.where(gap > 0, -half, tl.where(gap < 0, half, 0.0))
    else:
        above = gap >= 0
        far = tl.abs(gap)
        t = expm1(-far)
        shrunk = tl.where(above, 1 - share, share) * t
        near = log1p(shrunk, EVEN)  # log(m / max(p, q))
        other = near + far  # log(m / min(p, q))
        p_over_m = -tl.where(above, near, other)
        q_over_m = -tl.where(above, other, near)
        step = t / (1.0 + shrunk)
        if KIND == JSD:
            pull = (1 - share) * q * q_over_m
            return share * p * p_over_m + pull, pull
        elif KIND == SKEW_KL:
            change = tl.where(above, share - 1, 1 - share) * step  # p / m - 1
            return p * p_over_m + (1 - share) * excess, (share - 1) * q * change
        else:
            change = tl.where(above, share, -share) * step  # q / m - 1
            return q * q_over_m - share * excess, q * (q_over_m - (1 - share) * change)


@triton.autotune(
    SHARED,
    key=["count", "KIND", "EVEN", "GRADIENT"],
    reset_to_zero=["met"],
    restore_value=["teacher"],
)
@triton.jit
def divergence_rows(
    student,
    teacher,
    stride,
    gradient,
    gradient_stride,
    scale,
    figures,
    parts,
    met,
    rows,
    vocabulary,
    count,
    inverse_temperature,
    share,
    KIND: tl.constexpr,
    EVEN: tl.constexpr,
    GRADIENT: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Figures is [4, rows]: loss, student entropy, teacher entropy, agreement.

    Every row is shared by PARTS programs, so that the rows being worked on fit into the cache and
    come from memory once. They meet twice, when the normalizers are known and when the sums are.
    parts: room for [rows, 9, PARTS]; met: [1 + 2 rows], zero. Programs draw their numbers, so that
    those who are waited for have started. What the gradient needs of a sum goes over the teacher's
    logits meanwhile, and their padding is put back in the end; forward_kl needs none.
    """
    ticket = tl.atomic_add(met, 1, sem="relaxed")
    row = ticket // PARTS
    part = ticket % PARTS
    at = row.to(tl.int64)
    student += at * stride
    teacher += at * stride
    gradient += at * gradient_stride
    parts += at * 9 * PARTS
    met += 1 + 2 * row
    width = tl.cdiv(count // TILE, PARTS) * TILE
    first = part * width
    end = tl.minimum(first + width, count)
    factor = inverse_temperature * (1 / LN2)
    top, total = exponentials(student, first, end, factor, TILE)
    tl.store(parts + part, top)
    tl.store(parts + PARTS + part, total)
    top, total = exponentials(teacher, first, end, factor, TILE)
    tl.store(parts + 2 * PARTS + part, top)
    tl.store(parts + 3 * PARTS + part, total)
    wait(met, PARTS)
    top_q, sum_q = normalizer(read(parts, 0, PARTS), read(parts, 1, PARTS), factor)
    top_p, sum_p = normalizer(read(parts, 2, PARTS), read(parts, 3, PARTS), factor)
    poison = (sum_q + sum_p) * 0.0
    slope = tl.load(scale + at) * inverse_temperature + poison
    loss = tl.zeros([TILE], tl.float32)
    pulls = tl.zeros([TILE], tl.float32)
    bits_q = tl.zeros([TILE], tl.float32)
    bits_p = tl.zeros([TILE], tl.float32)
    same = tl.zeros([TILE], tl.float32)
    for start in range(first, end, TILE):
        columns = start + tl.arange(0, TILE)
        z = tl.load(student + columns)
        u = tl.load(teacher + columns)
        log2_q = log2_softmax(z, top_q, sum_q, factor)
        log2_p = log2_softmax(u, top_p, sum_p, factor)
        q = tl.exp2(log2_q)
        p = tl.exp2(log2_p)
        piece, pull = summand((log2_p - log2_q) * LN2, p, q, share, KIND, EVEN)
        loss += piece
        pulls += pull
        bits_q -= q * log2_q
        bits_p -= p * log2_p
        same = tl.where((z == top_q) & (u == top_p), 1.0, same)
        if GRADIENT:
            if KIND == FORWARD_KL:
                value = (pull + q) * slope
                tl.store(gradient + columns, value.to(gradient.dtype.element_ty))
            else:
                tl.store(teacher + columns, pull)
    tl.store(parts + 4 * PARTS + part, tl.sum(loss, 0))
    tl.store(parts + 5 * PARTS + part, tl.sum(bits_q, 0))
    tl.store(parts + 6 * PARTS + part, tl.sum(bits_p, 0))
    tl.store(parts + 7 * PARTS + part, tl.max(same, 0))
    tl.store(parts + 8 * PARTS + part, tl.sum(pulls, 0))
    wait(met + 1, PARTS)
    if part == 0:
        tl.store(figures + at, tl.sum(read(parts, 4, PARTS), 0) + poison)
        tl.store(figures + rows + at, tl.sum(read(parts, 5, PARTS), 0) * LN2)
        tl.store(figures + 2 * rows + at, tl.sum(read(parts, 6, PARTS), 0) * LN2)
        tl.store(figures + 3 * rows + at, tl.max(read(parts, 7, PARTS), 0))
    if GRADIENT and KIND != FORWARD_KL:
        centre = tl.sum(read(parts, 8, PARTS), 0)
        for start in range(first, end, TILE):
            columns = start + tl.arange(0, TILE)
            q = tl.exp2(log2_softmax(tl.load(student + columns), top_q, sum_q, factor))
            value = (tl.load(teacher + columns) - centre * q) * slope
            tl.store(gradient + columns, value.to(gradient.dtype.element_ty))
        if end == count:
            for start in range(vocabulary // TILE * TILE, count, TILE):
                columns = start + tl.arange(0, TILE)
                tl.store(teacher + columns, -float("inf"), mask=columns >= vocabulary)


@triton.autotune(CONFIGS, key=["count"])
@triton.jit
def softmax_rows(logits, stride, figures, rows, count, inverse_temperature, TILE: tl.constexpr):
    """Figures is [3, rows]: largest logit, log of the sum of exponentials, entropy."""
    at = tl.program_id(0).to(tl.int64)
    logits += at * stride
    factor = inverse_temperature * (1 / LN2)
    top, log_sum = row_normalizer(logits, count, factor, TILE)
    bits = tl.zeros([TILE], tl.float32)
    last = count - TILE
    for start in range(0, count, TILE):
        x = tl.load(logits + last - start + tl.arange(0, TILE))
        log2_q = log2_softmax(x, top, log_sum, factor)
        bits -= tl.exp2(log2_q) * log2_q
    massless = top <= FLOOR
    log_sum = top * inverse_temperature + log_sum * LN2
    tl.store(figures + at, tl.where(massless, -float("inf"), top))
    tl.store(figures + rows + at, tl.where(massless, -float("inf"), log_sum))
    tl.store(figures + 2 * rows + at, tl.where(massless, 0.0, tl.sum(bits, 0) * LN2))


@triton.autotune(CONFIGS, key=["count"])
@triton.jit
def spread_rows(
    logits,
    stride,
    log_sum,
    scale,
    into,
    into_stride,
    count,
    inverse_temperature,
    TILE: tl.constexpr,
):
    """scale * exp(logits * inverse_temperature - log_sum)"""
    at = tl.program_id(0).to(tl.int64)
    logits += at * stride
    into += at * into_stride
    total = tl.load(log_sum + at)
    total = tl.where(total < FLOOR, FLOOR, total)  # of a row without mass
    slope = tl.load(scale + at)
    for start in range(0, count, TILE):
        columns = start + tl.arange(0, TILE)
        x = tl.load(logits + columns) * inverse_temperature - total
        value = (tl.exp2(x * (1 / LN2)) * slope).to(into.dtype.element_ty)
        tl.store(into + columns, value)
