"""What every peer is."""


class Peer:
    interleaved = False

    def __init__(self, ctx):
        self.ctx = ctx
        self.note = ""

    def variants(self, case, impl):
        return [("", {})]

    def build(self, case, impl, params):
        """{unit: callable(batch) -> output}, the first unit being the one variants compete on."""
        raise NotImplementedError

    def graph_ok(self, impl, unit):
        return True
