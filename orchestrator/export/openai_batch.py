"""The output of `powersample generate` where its input is a batch of OpenAI's: a line for each row, in its order.

All is made of the records, ids too, so that the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evals.record import Record
from orchestrator.inputs.batch import BatchRow
from orchestrator.inputs.rows import InputRow


def lines(records: Iterable[Record], rows: Mapping[int, InputRow], model: str, num_samples: int) -> str:
    """The lines of the rows that have all their answers."""
    answers = defaultdict[int, list[Record]](list)
    for record in sorted(records, key=lambda one: one.key):
        answers[record.problem_id].append(record)
    whole = ((rows[number], own) for number, own in answers.items() if len(own) == num_samples)
    made = [line(row, own, model) for row, own in whole if isinstance(row, BatchRow)]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)


def line(row: BatchRow, records: Sequence[Record], model: str) -> dict[str, Any]:
    """The line of a row; where one of its samples has failed it is an error."""
    texts, ended = [record.text for record in records], max(record.timings.end or 0.0 for record in records)
    number = hashlib.sha256(json.dumps([row.custom_id, ended, texts]).encode()).hexdigest()[:24]
    same = {"id": f"batch_req_{number}", "custom_id": row.custom_id}
    if failed := next((record for record in records if record.status == "failed"), None):
        return {**same, "response": None, "error": {"code": "failed", "message": failed.error or ""}}
    says = [{"message": {"role": "assistant", "content": text}} if row.is_chat else {"text": text} for text in texts]
    reasons = ["length" if record.ended == "length" else "stop" for record in records]
    read, written = records[0].tokens.prompt or 0, sum(record.tokens.answer or 0 for record in records)
    body = {
        "id": f"{'chatcmpl' if row.is_chat else 'cmpl'}-{number}",
        "object": "chat.completion" if row.is_chat else "text_completion",
        "created": int(ended),
        "model": model,
        "choices": [
            {"index": index, **said, "logprobs": None, "finish_reason": reason}
            for index, (said, reason) in enumerate(zip(says, reasons, strict=True))
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }
    return {**same, "response": {"status_code": 200, "request_id": f"req_{number}", "body": body}, "error": None}
