"""What MLflow runs to load a registered model: it goes with the model, in place of a pickled object.

Beside it go the folder that ``benchmarks.models.predictor`` reads, and the package benchmarks; Ray and the rest of the
project are not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from benchmarks.models.predictor import Predictor, load_predictor


class ServedModel(PythonModel):
    """Images uint8 [n, height, width, 3], or a column ``text``, to the name of each row's class.

    The parameter ``task`` names the task whose classes compete; by default all that were learned do.
    """

    predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = load_predictor(Path(context.artifacts["model"]))

    # Without types: MLflow would make a signature of them, in place of the model's own.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        rows: Any = model_input["text"].tolist() if hasattr(model_input, "columns") else model_input
        return self.predictor.predict(rows, (params or {}).get("task", ""))


set_model(ServedModel())
