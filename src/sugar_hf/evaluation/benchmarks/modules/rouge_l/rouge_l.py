"""Three forms of ROUGE-L."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import rouge_l_coco, rouge_l_demon, rouge_l_google


class RougeL(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="ROUGE-L as DEMON, Google's package or MSCOCO captions compute it.",
            inputs=(
                "predictions: texts; references: a text or a list of texts of each; form: demon, google or coco. "
                "Of several references demon and google take the best score. Gives `rouge_l`, the mean in "
                "percent."
            ),
            citation="Lin, ROUGE: A Package for Automatic Evaluation of Summaries, ACL 2004",
            features=[
                datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Value("string"),
                    }
                ),
                datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Sequence(datasets.Value("string")),
                    }
                ),
            ],
            reference="https://github.com/pltrdy/rouge",
        )

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], form: str = "demon"
    ) -> dict[str, float]:
        if form not in ("demon", "google", "coco"):
            raise ValueError(f"form: {form!r} is none of demon, google, coco")
        one = rouge_l_demon if form == "demon" else rouge_l_google
        scores = []
        for text, own in zip(predictions, references, strict=True):
            texts = [own] if isinstance(own, str) else own
            scores.append(rouge_l_coco(text, texts) if form == "coco" else max(one(text, other) for other in texts))
        return {"rouge_l": percent(scores)}
