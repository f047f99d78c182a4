"""An HTML page with the results of a search: one file, with the images as small JPEGs inside."""

import html
import io
from base64 import b64encode
from pathlib import Path
from string import Template

from modeling_vlkd.image_loading_vlkd import read_image

SIDE = 320  # pixels of a thumbnail's longer side
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1f2328; --dim: #59636e; --page: #fff; --card: #f3f5f7; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9aa4ae; --page: #0f1318; --card: #181d23; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1180px;
  margin: auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; } p { margin: .3rem 0 1.2rem; }
p, figcaption { color: var(--dim); } .query { width: 140px; border-radius: 10px; margin-bottom: .8rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(160px, 45%), 1fr)); }
figure { margin: 0; border-radius: 10px; background: var(--card); overflow: hidden; }
figure img, figure div { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
figure div { display: grid; place-items: center; }
figcaption { padding: .5rem .7rem .7rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
b { display: block; color: var(--ink); font-size: .95rem; font-variant-numeric: tabular-nums; }
</style></head><body>
$image<h1>$title</h1>
<p>The best $count of $total images. The scores are cosine similarities.</p>
<main>$figures</main>
</body></html>
""")


def contact_sheet(title: str, results: list[tuple[str, float]], total: int, image: str = "") -> tuple[str, dict]:
    """The page, and the errors of the images that cannot be read, by path.

    Args:
        title: the heading, which names the query.
        results: paths or URLs of images with their scores, best first.
        total: the number of images in the index.
        image: the path or URL of the query, if it is an image.
    """
    errors = {}
    page = PAGE.substitute(
        title=html.escape(title),
        image=_thumbnail(image, errors, ' class="query"') if image else "",
        count=len(results),
        total=total,
        figures="\n".join(_figure(path, score, errors) for path, score in results),
    )
    return page, errors


def _figure(path: str, score: float, errors: dict[str, str]) -> str:
    caption = f"<figcaption><b>{score:.4f}</b>{html.escape(path)}</figcaption>"
    return f"<figure>{_thumbnail(path, errors)}{caption}</figure>"


def _thumbnail(path: str, errors: dict[str, str], attributes: str = "") -> str:
    """An image as HTML; a text in its place, and an error in `errors`, if it cannot be read."""
    try:
        image = read_image(as_source(path), min_side=SIDE)
    except ValueError as error:
        errors[path] = str(error.__cause__ or error)
        return "<div>cannot be read</div>"
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, optimize=True)
    data = b64encode(file.getvalue()).decode()
    return f'<img{attributes} src="data:image/jpeg;base64,{data}" alt="{html.escape(Path(path).name)}">'


def as_source(name: str) -> Path | str:
    """A URL, or else a path: `read_image` takes other strings for base64 if there is no such file."""
    return name if name.startswith(("http://", "https://")) else Path(name)
