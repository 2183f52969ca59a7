from pipeline.records import Bool, Float32, UInt8

INTERFACE: int

def largest_row(*, height: int, width: int, bands: int, bi_w: float, bi_xy: float) -> float: ...

class Engine:
    def __init__(self, isa: str = "") -> None: ...
    def refine(
        self,
        *,
        image: UInt8,
        logits: Float32,
        valid: Bool | None,
        band_sigmas: Float32,
        bi_w: float,
        bi_xy: float,
        pos_w: float,
        pos_xy: float,
        iterations: int,
        separable: bool,
        full_size: bool,
        stride: int,
        align_corners: bool,
        origin_y: int,
        origin_x: int,
        freeze: float,
        seconds_left: float,
        most_vertices: int,
        want_probs: bool,
        want_labels: bool,
        want_first: bool,
    ) -> tuple[Float32 | None, UInt8 | None, UInt8 | None, Float32 | None, Float32 | None, int, int, int] | None: ...
    @property
    def bytes_held(self) -> int: ...
    @property
    def isa(self) -> str: ...
