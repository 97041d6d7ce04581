"""DeepGEMM's grouped GEMMs by their documentation, in torch, to try the peer without a GPU: asserts what they ask."""

import inspect

import torch


class StandIn:
    def __init__(self, real=None):
        """`real` is the package where it can be imported; its signatures then have to take the calls."""
        self.real, self.alignment = real, 128

    def check(self, name, *args):
        if self.real:
            inspect.signature(getattr(self.real, name)).bind(*args)

    def set_mk_alignment_for_contiguous_layout(self, alignment):
        self.check("set_mk_alignment_for_contiguous_layout", alignment)
        self.alignment = alignment

    def m_grouped_bf16_gemm_nt_contiguous(self, a, b, d, grouped_layout):
        """A row's expert is in grouped_layout, -1 for none; experts begin at whole multiples of the alignment."""
        self.check("m_grouped_bf16_gemm_nt_contiguous", a, b, d, grouped_layout)
        (m, k), (groups, n, _) = a.shape, b.shape
        for tensor, shape in ((a, (m, k)), (b, (groups, n, k)), (d, (m, n))):
            expect(tensor, shape)
        expect(grouped_layout, (m,), torch.int32)
        assert m % self.alignment == 0
        for tile in range(0, m, self.alignment):
            experts = grouped_layout[tile : tile + self.alignment]
            rows = experts >= 0
            # A tile goes by its first row; those behind its last are padding.
            assert (experts[rows] == experts[0]).all() and not rows[rows.sum() :].any()
            if rows.any():
                d[tile : tile + rows.sum()] = product(a[tile : tile + rows.sum()], b[experts[0]])

    def m_grouped_bf16_gemm_nt_masked(self, a, b, d, masked_m, expected_m):
        """Expert g has its first masked_m[g] rows of a[g]."""
        self.check("m_grouped_bf16_gemm_nt_masked", a, b, d, masked_m, expected_m)
        (groups, m, k), n = a.shape, b.shape[1]
        for tensor, shape in ((a, (groups, m, k)), (b, (groups, n, k)), (d, (groups, m, n))):
            expect(tensor, shape)
        expect(masked_m, (groups,), torch.int32)
        assert expected_m > 0 and m % 128 == 0 and masked_m.max() <= m
        for g, rows in enumerate(masked_m.tolist()):
            d[g, :rows] = product(a[g, :rows], b[g])


def expect(tensor, shape, dtype=torch.bfloat16):
    found = tuple(tensor.shape), tensor.dtype
    assert found == (shape, dtype) and tensor.is_contiguous(), found


def product(a, b):
    return (a.float() @ b.float().T).to(a.dtype)
