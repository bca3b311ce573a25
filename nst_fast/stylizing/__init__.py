"""Stylize pictures with exported models: no torch is imported here."""

import os

# onnxruntime keeps a device's id in the home folder and reports to its maker, unless this is set when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
