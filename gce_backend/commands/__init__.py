"""The commands of ``mlflow-gce``, one module each; ``gce_backend/cli.py`` lists them.

Nothing heavy at the top of a module: cloud libraries and MLflow are imported where they are used.
"""
