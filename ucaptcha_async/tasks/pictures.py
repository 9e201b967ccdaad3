"""What you ask about pictures: their text, where to click, how far to turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from . import names
from .base import S_co, SolutionClass, Widget, sent
from .fields import ANGLE, CLICKS, FLAG, LENGTH, TEXT, in_order, maybe, one_of, page, whole_number
from .images import Image, ImageSource, read_image
from .solutions import CoordinatesSolution, RotateSolution, TextSolution

LanguagePool: TypeAlias = Literal["en", "rn"]
"""A group of people who solve: `"en"`, or `"rn"` (Russian and neighbours)."""


def _image(value: ImageSource) -> Image:
    return read_image("image", value)


def _instructions(value: ImageSource | None) -> Image | None:
    return None if value is None else read_image("img_instructions", value)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Recognition(Widget[S_co]):
    """A task about an image, which is sent as a `data:` URI, and what to do with it."""

    image: Image = attrs.field(converter=_image, metadata=sent("imageBase64", Image.to_data_uri))
    comment: str | None = attrs.field(default=None, validator=maybe(TEXT))
    img_instructions: Image | None = attrs.field(
        default=None, converter=_instructions, metadata=sent("imgInstructions", Image.to_data_uri)
    )


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageToText(Widget[TextSolution]):
    """Text in an image. Gives a `TextSolution`, usually at once.

    Type `ImageToTextTask` (U: api/ucaptcha/create-task). The fields are family: anti-captcha ImageToTextTask, not
    uCaptcha's own page.

    Attributes:
        image: The image: PNG, JPEG, GIF, WebP or BMP. Required. Sent as `body`. Give its bytes; the path of a file as
            `pathlib.Path` (`~` is your home); a file that is open for reading bytes, or `io.BytesIO`, which is read
            from its start; an image of Pillow, which is sent as PNG; base64 (also URL-safe) or a `data:` URL, as text
            or as bytes. Files are read at once: on a slow disk, do that in a thread of your own.
        phrase: Whether the answer has more than one word.
        case: Whether upper and lower case matter.
        numeric: 0 anything, 1 digits only, 2 no digits (anti-captcha); 3 and 4 are 2captcha's: either digits or
            letters, and both.
        math: Whether the answer is the result of a calculation.
        min_length: Fewest characters; 0 for no limit.
        max_length: Most characters; 0 for no limit.
        comment: A hint for the solver.
        website_url: Absolute URL of the page it comes from.
        language_pool: `"en"` or `"rn"` (Russian and neighbours).
        module: The name of a recogniser. Family: CapSolver.
        type: The one type to send; no other is tried.
        lifetime: Seconds that the text is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        import base64
        from ucaptcha_async import ImageToText

        text = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
        task = ImageToText(image=base64.b64decode(text), numeric=1, max_length=6)
        assert task.to_wire() == {"type": "ImageToTextTask", "body": text, "numeric": 1, "maxLength": 6}
        assert task == ImageToText(image=f"data:image/gif;base64,{text}", numeric=1, max_length=6)
        ```
    """

    solution_class: ClassVar[SolutionClass] = TextSolution
    type_names: ClassVar[names.Names] = names.IMAGE_TO_TEXT

    image: Image = attrs.field(converter=_image, metadata=sent("body", Image.to_base64))
    phrase: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    case: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    numeric: int | None = attrs.field(default=None, validator=maybe(whole_number(0, 4)))
    math: bool | None = attrs.field(default=None, validator=maybe(FLAG))
    min_length: int | None = attrs.field(default=None, validator=maybe(LENGTH))
    max_length: int | None = attrs.field(default=None, validator=maybe(LENGTH))
    comment: str | None = attrs.field(default=None, validator=maybe(TEXT))
    website_url: str | None = attrs.field(default=None, validator=maybe(page), metadata=sent("websiteURL"))
    language_pool: LanguagePool | None = attrs.field(default=None, validator=maybe(one_of("en", "rn")))
    module: str | None = attrs.field(default=None, validator=maybe(TEXT))

    @classmethod
    def _check_together(cls, given: Mapping[str, Any]) -> None:
        """Check the fields that depend on each other."""
        in_order("min_length", given.get("min_length"), "max_length", given.get("max_length"))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ClickCoordinates(Recognition[CoordinatesSolution]):
    """Where to click in an image. Gives a `CoordinatesSolution`.

    Types, in the order in which they are tried: `CoordinatesRecognition` (family: AnySolver), `CoordinatesTask`
    (family: 2captcha). The fields are family: AnySolver CoordinatesRecognition, not uCaptcha's own page.

    Attributes:
        image: The image. Required. From the same sources as for [`ImageToText`][ucaptcha_async.ImageToText]. Sent as
            `imageBase64`, a `data:` URI as in the example of that page.
        comment: What to do, in words.
        img_instructions: What to do, as an image.
        min_clicks: Fewest clicks, from 1.
        max_clicks: Most clicks, from 1.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a solution is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import ClickCoordinates

        picture = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
        task = ClickCoordinates(image=picture, comment="Click the cats", max_clicks=4)
        assert task.to_wire()["imageBase64"] == f"data:image/gif;base64,{picture}"
        ```
    """

    solution_class: ClassVar[SolutionClass] = CoordinatesSolution
    type_names: ClassVar[names.Names] = names.CLICK_COORDINATES

    min_clicks: int | None = attrs.field(default=None, validator=maybe(CLICKS))
    max_clicks: int | None = attrs.field(default=None, validator=maybe(CLICKS))

    @classmethod
    def _check_together(cls, given: Mapping[str, Any]) -> None:
        """Check the fields that depend on each other."""
        in_order("min_clicks", given.get("min_clicks"), "max_clicks", given.get("max_clicks"))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Rotate(Recognition[RotateSolution]):
    """How far to turn an image. Gives a `RotateSolution`.

    Types, in the order in which they are tried: `RotateRecognition` (family: AnySolver), `RotateTask` (family:
    2captcha). The fields are family: AnySolver RotateRecognition, not uCaptcha's own page.

    Attributes:
        image: The image. Required. From the same sources as for [`ImageToText`][ucaptcha_async.ImageToText]. Sent as
            `imageBase64`, a `data:` URI as in the example of that page.
        angle: The step of the widget, degrees, above 0 up to 360.
        comment: What to do, in words.
        img_instructions: What to do, as an image.
        type: The one type to send; no other is tried.
        lifetime: Seconds that a solution is accepted; not known in general. Never sent.
        extra: More fields, as the service spells them; they replace fields of the same name.

    Example:
        ```python
        from ucaptcha_async import Rotate

        picture = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
        task = Rotate(image=picture, angle=40)
        assert task.to_wire()["imageBase64"] == f"data:image/gif;base64,{picture}"
        ```
    """

    solution_class: ClassVar[SolutionClass] = RotateSolution
    type_names: ClassVar[names.Names] = names.ROTATE

    angle: float | None = attrs.field(default=None, validator=maybe(ANGLE))
