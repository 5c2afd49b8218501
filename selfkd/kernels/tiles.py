"""The row work in Triton: one program a row, which walks the vocabulary in tiles.

Logits are float32. Rows are padded with -inf to a multiple of what is loaded at once, so no load
needs a mask but at the end of the last tile. Summands carry a multiple of q - p, as in measures.py.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportReturnType=false
import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e30)
BELOW = tl.constexpr(-2e30)
"""Where a logit of -inf is put, further down than any largest logit."""
FORWARD_KL, REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL, TVD = (tl.constexpr(i) for i in range(6))
"""The places of measures.KINDS."""

if triton.knobs.runtime.interpret:
    CONFIGS = [triton.Config({"TILE": 128})]
else:
    CONFIGS = [
        triton.Config({"TILE": tile}, num_warps=warps)
        for tile, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 8), (4096, 16), (8192, 16))
    ]


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0."""
    series = x * 2.4801587e-5 + 1.9841270e-4
    series = series * x + 1.3888889e-3
    series = series * x + 8.3333333e-3
    series = series * x + 4.1666667e-2
    series = series * x + 1.6666667e-1
    series = series * x + 0.5
    return tl.where(x > -0.5, series * x * x + x, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for -1 < x <= 0: 2 atanh(x / (2 + x)) near 0; further down 1 + x is exact."""
    s = x / (2.0 + x)
    square = s * s
    series = square * 0.15384615 + 0.18181818
    series = series * square + 0.22222222
    series = series * square + 0.28571429
    series = series * square + 0.4
    series = series * square + 0.66666667
    return tl.where(x > -0.5, series * square * s + 2.0 * s, tl.log(1.0 + x))


@triton.jit
def scaled(row, columns, count, factor):
    x = tl.load(row + columns, mask=columns < count, other=-float("inf")) * factor
    return tl.where(x < BELOW, BELOW, x)  # unlike maximum, lets NaN through


@triton.jit
def logarithm(total):
    """In float64, once a row: the fast one is off by more than the divergence of close models."""
    return tl.log(total.to(tl.float64)).to(tl.float32)


@triton.jit
def normalizer(row, count, factor, TILE: tl.constexpr):
    """Largest scaled logit, and the log of the sum of exponentials relative to it."""
    top = FLOOR + 0.0
    total = 0.0
    for start in range(0, count, TILE):
        x = scaled(row, start + tl.arange(0, TILE), count, factor)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    return top, logarithm(total)


@triton.jit
def log_softmax(x, top, log_sum):
    log_q = (x - top) - log_sum
    return tl.where(log_q < FLOOR, FLOOR, log_q)


@triton.jit
def summand(log_p, log_q, p, q, share, KIND: tl.constexpr):
    """Of the divergence; and q times its derivative by q, up to a multiple of q."""
    gap = log_p - log_q
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
        near = log1p(shrunk)  # log(m / max(p, q))
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


@triton.autotune(CONFIGS, key=["count", "KIND", "GRADIENT"])
@triton.jit
def divergence_rows(
    student,
    teacher,
    stride,
    gradient,
    gradient_stride,
    scale,
    figures,
    rows,
    count,
    factor,
    share,
    KIND: tl.constexpr,
    GRADIENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Figures is [4, rows]: loss, student entropy, teacher entropy, agreement.

    Three walks over both rows, every other one backwards, as what was read last is still in the
    cache: the normalizers, the sums, the gradient. forward_kl needs no sum for its gradient.
    """
    at = tl.program_id(0).to(tl.int64)
    student += at * stride
    teacher += at * stride
    gradient += at * gradient_stride
    top_q, log_sum_q = normalizer(student, count, factor, TILE)
    top_p, log_sum_p = normalizer(teacher, count, factor, TILE)
    slope = tl.load(scale + at) * factor
    last = (count - 1) // TILE * TILE
    loss = tl.zeros([TILE], tl.float32)
    pulls = tl.zeros([TILE], tl.float32)
    entropy_q = tl.zeros([TILE], tl.float32)
    entropy_p = tl.zeros([TILE], tl.float32)
    same = tl.zeros([TILE], tl.float32)
    for start in range(0, count, TILE):
        columns = last - start + tl.arange(0, TILE)
        z = scaled(student, columns, count, factor)
        u = scaled(teacher, columns, count, factor)
        log_q = log_softmax(z, top_q, log_sum_q)
        log_p = log_softmax(u, top_p, log_sum_p)
        q = tl.exp(log_q)
        p = tl.exp(log_p)
        part, pull = summand(log_p, log_q, p, q, share, KIND)
        loss += part
        pulls += pull
        entropy_q -= q * log_q
        entropy_p -= p * log_p
        same = tl.where((z == top_q) & (u == top_p), 1.0, same)
        if GRADIENT and KIND == FORWARD_KL:
            value = ((pull + q) * slope).to(gradient.dtype.element_ty)
            tl.store(gradient + columns, value, mask=columns < count)
    tl.store(figures + at, tl.sum(loss, 0))
    tl.store(figures + rows + at, tl.sum(entropy_q, 0))
    tl.store(figures + 2 * rows + at, tl.sum(entropy_p, 0))
    tl.store(figures + 3 * rows + at, tl.max(same, 0))
    if GRADIENT and KIND != FORWARD_KL:
        centre = tl.sum(pulls, 0)
        for start in range(0, count, TILE):
            columns = start + tl.arange(0, TILE)
            log_q = log_softmax(scaled(student, columns, count, factor), top_q, log_sum_q)
            log_p = log_softmax(scaled(teacher, columns, count, factor), top_p, log_sum_p)
            q = tl.exp(log_q)
            part, pull = summand(log_p, log_q, tl.exp(log_p), q, share, KIND)
            value = ((pull - centre * q) * slope).to(gradient.dtype.element_ty)
            tl.store(gradient + columns, value, mask=columns < count)


@triton.autotune(CONFIGS, key=["count"])
@triton.jit
def softmax_rows(logits, stride, figures, rows, count, factor, TILE: tl.constexpr):
    """Figures is [3, rows]: largest logit, log of the sum of exponentials, entropy."""
    at = tl.program_id(0).to(tl.int64)
    logits += at * stride
    top, log_sum = normalizer(logits, count, factor, TILE)
    largest = tl.full([TILE], -float("inf"), tl.float32)
    entropy = tl.zeros([TILE], tl.float32)
    last = (count - 1) // TILE * TILE
    for start in range(0, count, TILE):
        columns = last - start + tl.arange(0, TILE)
        x = tl.load(logits + columns, mask=columns < count, other=-float("inf"))
        largest = tl.maximum(largest, x)
        log_q = log_softmax(tl.where(x * factor < BELOW, BELOW, x * factor), top, log_sum)
        entropy -= tl.exp(log_q) * log_q
    massless = top <= FLOOR
    tl.store(figures + at, tl.max(largest, 0))
    tl.store(figures + rows + at, tl.where(massless, -float("inf"), top + log_sum))
    tl.store(figures + 2 * rows + at, tl.where(massless, 0.0, tl.sum(entropy, 0)))


@triton.autotune(CONFIGS, key=["count"])
@triton.jit
def spread_rows(
    logits, stride, log_sum, scale, into, into_stride, count, factor, TILE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64)
    logits += at * stride
    into += at * into_stride
    total = tl.load(log_sum + at)
    total = tl.where(total < FLOOR, FLOOR, total)  # of a row without mass
    slope = tl.load(scale + at)
    for start in range(0, count, TILE):
        columns = start + tl.arange(0, TILE)
        value = tl.exp(scaled(logits, columns, count, factor) - total) * slope
        tl.store(into + columns, value.to(into.dtype.element_ty), mask=columns < count)
