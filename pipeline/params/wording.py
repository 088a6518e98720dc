"""Settings in words, for errors and for the report: apart from the settings themselves, on which trainings depend."""

from __future__ import annotations

import json

from pipeline.params.views import Stack, TwoViews, ViewParams


def described(views: ViewParams) -> str:
    """Return a view space with all its settings, for instance "crop_flip {padding: 4, fill: zero, flip: true}".

    Of several that are stacked each stands after the one before.
    """
    if isinstance(views, Stack):
        return ", ".join(map(described, views.parts))
    if isinstance(views, TwoViews):
        return f"{described(views.weak)}; strong: {described(views.strong)}"
    settings = views.model_dump(mode="json", exclude={"space"})
    written = (f"{name}: {x if isinstance(x, str) else json.dumps(x)}" for name, x in settings.items())
    return f"{views.space} {{{', '.join(written)}}}" if settings else views.space
