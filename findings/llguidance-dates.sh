#!/usr/bin/env bash
# What a good engineer would guess: an output that a library holds to a JSON schema with "format": "date" is a date. The library knows that April has 30 days
# and that February has no 30th, so the 29th of February comes in leap years.
#
# What is true (llguidance 1.9.1): every year has a 29th of February, and every minute a second 60. "2021-02-29" is taken for a date, "2021-02-29T00:00:00Z" and
# "2021-06-15T12:30:60Z" for a date-time, while "2021-02-30" and "2021-04-31" are not: formats are regular expressions, and leap years and leap
# seconds were left out of them. Validators (and datetime.fromisoformat) refuse what is generated so: rare at random, and less so where a model copies or
# reckons with dates at the end of February.
#
# Why a server of models cares: its promise is that an output which ended is valid by its schema, and clients parse it into a date at once. A leap year is regular, so
# minisgld puts patterns of its own in place of date, time and date-time (daemon/grammar/src/rewrite.rs), and generates no leap second, which no date library of its clients takes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check llguidance==1.9.1
cat >"$work/dates.py" <<'PY'
import datetime
import json

import llguidance
from llguidance import LLMatcher, LLTokenizer

print("llguidance", llguidance.get_version())
tokenizer = LLTokenizer("byte")


def takes(form, text):
    """Whether an output may be this string, and end there."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "format": form})))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(json.dumps(text))
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def exists(text):
    try:
        datetime.datetime.fromisoformat(text)
        return True
    except ValueError:
        return False


seen = {}
for form, text in [
    ("date", "2020-02-29"), ("date", "2021-02-28"), ("date", "2021-02-29"), ("date", "1900-02-29"), ("date", "2021-02-30"),
    ("date", "2021-04-31"), ("date-time", "2021-02-29T00:00:00Z"), ("date-time", "2021-06-15T12:30:59Z"), ("date-time", "2021-06-15T12:30:60Z"),
]:
    seen[text] = (takes(form, text), exists(text))
    print(f"{form:9}  {text:20}  generated: {seen[text][0]!s:5}  exists: {seen[text][1]}")

wrong = [text for text, (taken, real) in seen.items() if taken != real]
assert wrong == ["2021-02-29", "1900-02-29", "2021-02-29T00:00:00Z", "2021-06-15T12:30:60Z"], wrong
PY
"$work/venv/bin/python" "$work/dates.py"
echo "as described"
