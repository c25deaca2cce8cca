"""A file in COCO's results format: a list of detections, or of proposals, of any system."""

import json
from pathlib import Path
from typing import Any

from pipeline.data.coco_json import collector_paused
from pipeline.data.quarantine import DataError


def load_results(path: Path) -> list[Any]:
    """What the list holds, not checked. Raises DataError."""
    try:
        with collector_paused():
            content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"no results at {path}; give the path of a JSON file in COCO's results format") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a JSON file in COCO's results format") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); write it again, it may have been cut off") from error
    if not isinstance(content, list):
        got = ", ".join(map(str, content))[:200] if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path} is no list of results but holds {got or 'nothing'}; COCO's results format is "
            '[{"image_id": 1, "category_id": 2, "bbox": [x, y, width, height], "score": 0.9}, ...]'
        )
    return content
