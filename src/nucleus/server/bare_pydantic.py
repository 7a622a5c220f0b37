"""Pydantic without plugins, for the gate template; imported before pydantic.

Promises: no plugin that another package brings for pydantic is loaded, or looked for: it would run in every gate, and
looking alone (importlib.metadata, email, zipfile) is 15 ms of a template's start.
Relies on: pydantic's own switch, an environment variable. The stand-in for its loader, which saves the looking, is an
empty one: where a later pydantic has no such module, nothing uses it.
"""

from __future__ import annotations

import os
import sys

LOADER = "pydantic.plugin._loader"

os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
if LOADER not in sys.modules:
    _loader = type(sys)(LOADER)
    _loader.__dict__["get_plugins"] = tuple  # called without arguments: ()
    sys.modules[LOADER] = _loader
