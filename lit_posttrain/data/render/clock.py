"""One moment for everything that a chat template renders: renderings are compared, and a template may write the time to
the second."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache

from lit_posttrain.template_variables import parsed

_NAME = re.compile(r"\bstrftime_now\b")
_STOPPED = "strftime_at_one_moment"


@lru_cache(maxsize=16)
def at_one_moment(template: str, now: datetime) -> str:
    """A template whose `strftime_now` writes the time of `now`; a format that is only known during rendering writes the
    current time.

    The time is written into the template, since transformers (5.24) takes no function as a variable.

    Raises:
        jinja2.TemplateError: the template is not valid Jinja.
    """
    from jinja2 import nodes

    if not _NAME.search(template):
        return template
    calls = [call for call in parsed(template).find_all(nodes.Call) if getattr(call.node, "name", "") == "strftime_now"]
    formats = {text.value for call in calls for text in call.find_all(nodes.Const) if isinstance(text.value, str)}
    told = json.dumps({text: now.strftime(text) for text in sorted(formats)}, ensure_ascii=False)
    clock = f"{{{{ {told}[format] if format in {told} else strftime_now(format) }}}}"
    # rendering removes the line break behind it, whatever the template begins with
    return f"{{% macro {_STOPPED}(format) %}}{clock}{{% endmacro %}}\n" + _NAME.sub(_STOPPED, template)
