"""What lmms-eval reads from the entry point `lmms_eval.models`, in every run of whatever model."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(
    model_id="sugar", chat_class_path="sugar_hf.evaluation.harnesses.lmms_eval_sugar.SugarChatModel"
)
