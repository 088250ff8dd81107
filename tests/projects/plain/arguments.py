"""Logs its arguments as it got them."""

import json
import sys

import mlflow

with mlflow.start_run():
    mlflow.log_text(json.dumps(sys.argv[1:]), "arguments.json")
