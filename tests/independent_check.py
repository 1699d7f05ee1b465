"""Opens a built artifact with its own library and counts right answers. Imports nothing of the project.

python tests/independent_check.py FOLDER    (FOLDER holds manifest.json; the data is scikit-learn's digits)
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
entry, how = manifest["signature"]["inputs"][0], manifest["preprocessing"]
model = str(folder / next(f["path"] for f in manifest["files"] if f["role"] == "model"))

digits = load_digits()
order = list(range(len(digits.target)))
random.Random(manifest["config"]["data"]["split_seed"]).shuffle(order)
report = order[-manifest["data"]["splits"]["report"]["n"] :]

if model.endswith(".tflite"):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()

    def run(x):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
elif model.endswith(".xml"):
    import openvino

    chosen = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])
    precision = chosen["options"]["INFERENCE_PRECISION_HINT"]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(x):
        return compiled([x])[0]
else:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(x):
        return session.run(None, {entry["name"]: x})[0]


right = 0
for i in report:
    grey = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
    image = np.asarray(Image.fromarray(grey).resize((how["crop"], how["crop"]), Image.Resampling.BILINEAR))
    x = (np.repeat(image[:, :, None], 3, axis=2).astype(np.float32) / how["divide_by"] - how["mean"]) / how["std"]
    x = x.astype(np.float32)[None]
    if entry["layout"] == "NCHW":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if entry["dtype"] == "int8":
        x = np.clip(np.round(x / entry["scale"]) + entry["zero_point"], -128, 127).astype(np.int8)
    right += int(run(x).argmax() == digits.target[i])
print(100 * right / len(report))
