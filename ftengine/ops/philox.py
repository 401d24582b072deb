"""Random bits for dropout that any device can reproduce: Philox4x32-7.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11, doi:10.1145/2063384.2063405. Seven rounds are
the fewest that passed all tests of BigCrush there; ten, which generators for other purposes take as a margin, take
1.7 times as long.

The specification, bit for bit, of the mask that every backend applies to x (M, K):

    key      k0 = low 32 bits of the seed, k1 = high 32 bits
    counter  (row, column // 8, 0, 0), one block of four 32-bit words (w0, w1, w2, w3) for eight columns
    bits     with j = column % 8, the j-th half-word of the block: w[j // 2], low half for even j, high half
             for odd j (in memory, on a little-endian machine: the j-th int16 of the sixteen bytes)
    keep     when that half-word, read as a *signed* 16-bit integer, is >= n - 32768, where p = n / 65536

So an element's fate depends on the seed, its row and its column, and on nothing else: neither on K, M, tiling,
threads nor device. A row always begins a block, eight neighbours (one 16-byte load of bf16) share one, and since
two counter words are zero, most of the first three rounds depends on the row alone or the column alone. The signed
comparison is the one that every instruction set has.
"""

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio and sqrt(3) - 1
MASK = 0xFFFFFFFF
ROUNDS = 7


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor) -> Tensor:
    """Encrypt counters (c0, c1, c2, c3) under a 64-bit seed.

    Words are stored in int64, because torch has no 32x32 -> 64 bit product. They broadcast: a word that depends only on
    the row or only on the column stays a vector, which saves a quarter of the work. c1 and c3 hold whole 64-bit
    products, whose upper halves are masked in the next round.

    Args:
        c0, c1, c2, c3: int64 in [0, 2^32), with shapes that broadcast.
        seed: () int64; read as 64 bits.

    Returns:
        (..., 4) int32: the words of each block, as bits.
    """
    rounds = torch.arange(ROUNDS, device=seed.device)
    k0 = ((seed + rounds * W0) & MASK).unbind()
    k1 = (((seed >> 32) + rounds * W1) & MASK).unbind()
    for i in range(ROUNDS):
        xor = torch.bitwise_xor if i < 3 else Tensor.bitwise_xor_  # in place once every product has the full shape
        p0, p1 = c0 * M0, c2 * M1
        c0 = xor(p1 >> 32, c1).bitwise_xor_(k0[i]).bitwise_and_(MASK)
        c2 = xor(p0 >> 32, c3).bitwise_xor_(k1[i]).bitwise_and_(MASK)
        c1, c3 = p1, p0
    block = torch.empty(*c0.shape, 4, dtype=torch.int32, device=c0.device)
    for i, word in enumerate((c0, c1, c2, c3)):
        block[..., i] = word  # keeps the low half
    return block


def keep_mask(seed: Tensor, n: int, first_row: int, rows: int, columns: int) -> Tensor:
    """Return the dropout mask for p = n / 65536, 1 <= n <= 65535.

    Returns:
        (rows, columns) int16, -1 (all bits set) for kept, 0 for dropped: rows first_row, first_row + 1, … of the mask.
    """
    row = torch.arange(first_row, first_row + rows, device=seed.device)[:, None]
    column = torch.arange((columns + 7) // 8, device=seed.device)[None, :]
    zero = row.new_zeros(1, 1)
    half_words = philox4x32(row, column, zero, zero, seed).view(torch.int16).flatten(-2)[:, :columns]
    threshold = n - 32768
    # To {threshold - 1, threshold}, then to {0, -1}: several times faster than a comparison that gives bool.
    half_words.clamp_(threshold - 1, threshold)
    return torch.sub(threshold - 1, half_words, out=half_words)
