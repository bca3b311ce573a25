"""Photographs in, painted pictures out, over HTTP.

pip install . fastapi uvicorn
cd examples && uvicorn service:app
curl --data-binary @photo.jpg "localhost:8000/stylize?style=great_wave&strength=0.8" -o painted.jpg
"""

import io
import threading
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from PIL import Image

from nst_fast import Stylizer
from nst_fast.errors import UserError
from nst_fast.stylizing.images import encode_image, load_image

Image.MAX_IMAGE_PIXELS = 20_000_000  # of an upload; twice as many are refused
app = FastAPI()
stylizer = Stylizer("gallery")  # one for all requests; threads may share it
turns = threading.BoundedSemaphore(stylizer.runs_at_once)  # more at once would take memory and save no time
Style = Literal[tuple(stylizer.paintings)]  # names alone: a Stylizer would also open a visitor's path to a .style file


async def body(request: Request) -> bytes:
    """Return what was posted; a server open to all needs a limit on its size, such as nginx's."""
    return await request.body()


@app.post("/stylize")
def stylize(
    photo: Annotated[bytes, Depends(body)],
    style: Style = "starry_night",
    strength: Annotated[float, Query(ge=0, le=1)] = 1,
) -> Response:
    """Return the painted picture as a JPEG."""
    with turns:
        try:
            photograph = load_image(io.BytesIO(photo))
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        painted = stylizer(photograph, style, strength)
    return Response(encode_image(painted, ".jpg"), media_type="image/jpeg")
