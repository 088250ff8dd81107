"""Trains a classifier on scikit-learn's digits, in whatever environment it finds itself."""

import sys

import mlflow
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

x_train, x_test, y_train, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)

with mlflow.start_run():
    model = LogisticRegression(max_iter=2000).fit(x_train / 16, y_train)
    mlflow.log_metric("test_accuracy", 100 * model.score(x_test / 16, y_test))
    mlflow.log_text(sys.prefix, "prefix.txt")
