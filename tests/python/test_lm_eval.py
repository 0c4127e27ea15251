"""lm-eval's `local-completions` on a task of a few choices, held to what transformers says of them.

Run by tests/tests/lm_eval.rs with MINISGL_BASE_URL, MINISGL_TOKENIZER (the model's folder) and MINISGL_FIXTURE
(tests/fixtures/smollm2_logits.json) set. Nothing is fetched.
"""

import json
import os
import tempfile
import unittest
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
from lm_eval.tasks import TaskManager

# Mean absolute difference of log-likelihoods, in nat.
MEAN_ERROR_MAX = 0.01

TASK = "continuations"


def documents(continuations):
    """One document for each context, with what transformers says of its choices."""
    found = {}
    for each in continuations:
        found.setdefault(each["context"], []).append(each)
    return [
        {
            "context": context,
            "choices": [each["text"] for each in choices],
            "expected": [[each["logprob"], each["is_greedy"]] for each in choices],
            # The model's own favourite: accuracy is 1 if lm-eval finds the same.
            "target": max(range(len(choices)), key=lambda at: choices[at]["logprob"]),
        }
        for context, choices in found.items()
    ]


def evaluate(docs, folder, **model_args):
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps({k: d[k] for k in ("context", "choices", "target")}) + "\n" for d in docs))
    # lm-eval reads JSON as YAML.
    (folder / f"{TASK}.yaml").write_text(json.dumps({
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }))
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "smollm2",
            "base_url": os.environ["MINISGL_BASE_URL"] + "/completions",
            "tokenizer": os.environ["MINISGL_TOKENIZER"],
            "tokenizer_backend": "huggingface",
            "max_retries": 1,
            **model_args,
        },
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


class LogLikelihoods(unittest.TestCase):
    def check(self, **model_args):
        fixture = json.loads(Path(os.environ["MINISGL_FIXTURE"]).read_text())
        docs = documents(fixture["continuations"])
        os.environ["HF_HOME"] = tempfile.mkdtemp()
        with tempfile.TemporaryDirectory() as folder:
            results = evaluate(docs, Path(folder), **model_args)
        self.assertEqual(results["results"][TASK]["acc,none"], 1.0)
        samples = results["samples"][TASK]
        self.assertEqual(len(samples), len(docs))
        errors = []
        for sample in samples:
            expected = docs[sample["doc_id"]]["expected"]
            self.assertEqual(len(sample["filtered_resps"]), len(expected))
            for (logprob, is_greedy), (its, its_greedy) in zip(sample["filtered_resps"], expected):
                self.assertEqual(is_greedy, its_greedy, sample["doc"]["context"])
                errors.append(abs(logprob - its))
        mean = sum(errors) / len(errors)
        print(f"{len(errors)} log-likelihoods: mean error {mean:.6f} nat, worst {max(errors):.6f}")
        self.assertLess(mean, MEAN_ERROR_MAX)

    def test_token_ids_one_by_one(self):
        self.check()

    def test_batches_at_once(self):
        self.check(batch_size=3, num_concurrent=4)

    def test_texts(self):
        self.check(tokenized_requests=False)


if __name__ == "__main__":
    unittest.main()
