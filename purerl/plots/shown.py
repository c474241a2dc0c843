"""A figure that notebooks show; apart, since importing matplotlib takes long."""

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows without `%matplotlib`."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """A picture of twice the size that it is shown in, for fine screens."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=2 * self.dpi)
        width, height = (round(x) for x in self.get_size_inches() * self.dpi)
        return drawn.getvalue(), {"width": width, "height": height}
