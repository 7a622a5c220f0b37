"""`.venv-audit/bin/python supply/validate.py FILE`: is it CycloneDX 1.6 by the standard's own schema? Exit 0 or 1."""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(sys.argv[1]).read_text())
if error is not None:
    print(f"{sys.argv[1]} is not CycloneDX 1.6: {str(error)[:500]}")
    sys.exit(1)
