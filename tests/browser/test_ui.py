"""What a person sees in MLflow's UI, without having set anything."""

from __future__ import annotations

import json
import urllib.parse

import pytest
from playwright.sync_api import Page, expect

from .conftest import EPOCHS, Ui, keep

pytestmark = [
    pytest.mark.flow,
    pytest.mark.xdist_group("browser"),  # one server and one browser for all
    pytest.mark.timeout(600),  # of the first one, which trains
]

CHART = ".js-plotly-plot"


def experiment(ui: Ui, tab: str = "runs", **query: str) -> str:
    words = urllib.parse.urlencode({"workflowType": "machine_learning", **query})
    return f"{ui.url}/#/experiments/{ui.experiment}/{tab}?{words}"


def test_the_table_says_what_ran_when_on_what_and_for_how_long(ui: Ui, page: Page) -> None:
    page.goto(experiment(ui))

    for run in (ui.run, ui.parent):
        expect(page.get_by_role("link", name=run.info.run_name).first).to_be_visible()
    for column in ("Run Name", "Created", "Dataset", "Duration", "Source", "Models"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    expect(page.get_by_text("digits (").first).to_be_visible()
    keep(page, "runs")


def test_a_runs_charts_have_every_epoch(ui: Ui, page: Page) -> None:
    page.goto(f"{ui.url}/#/experiments/{ui.experiment}/runs/{ui.run.info.run_id}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("test_accuracy")

    chart = page.locator(CHART)
    expect(chart).to_have_count(1)
    expect(chart.locator(".scatterlayer path.point")).to_have_count(EPOCHS)
    expect(chart.locator(".xtick").last).to_have_text(str(EPOCHS))


def test_a_figure_is_shown_from_the_bucket(ui: Ui, page: Page) -> None:
    page.goto(
        f"{ui.url}/#/experiments/{ui.experiment}/runs/{ui.run.info.run_id}"
        "/artifacts/confusion_matrix.png"
    )

    expect(page.get_by_text("gs://emulator-bucket/").first).to_be_visible()
    page.wait_for_function(
        "() => [...document.images].some(image => image.naturalWidth === 600"
        " && image.getBoundingClientRect().width > 0)"
    )
    keep(page, "artifact")


def test_the_models_page_has_its_run_and_its_scores(ui: Ui, page: Page) -> None:
    model = ui.run.outputs.model_outputs[0].model_id
    page.goto(f"{ui.url}/#/experiments/{ui.experiment}/models/{model}")

    expect(page.get_by_text("Ready").first).to_be_visible()
    expect(page.get_by_role("link", name=ui.run.info.run_name).first).to_be_visible()
    expect(page.get_by_text("worst_class_accuracy").first).to_be_attached()
    keep(page, "model")


def test_the_instances_load_is_among_the_system_metrics(ui: Ui, page: Page) -> None:
    page.goto(f"{ui.url}/#/experiments/{ui.experiment}/runs/{ui.run.info.run_id}/system-metrics")

    expect(page.get_by_text("cpu_utilization_percentage").first).to_be_visible()


def test_three_runs_compare_in_parallel_coordinates(ui: Ui, page: Page) -> None:
    ids = [run.info.run_id for run in ui.children]
    query = f"runs={json.dumps(ids)}&experiments={json.dumps([ui.experiment])}"
    page.goto(f"{ui.url}/#/compare-runs?{urllib.parse.quote(query, safe='=&,')}")
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    # What differs is chosen already; of the metrics, the first that was logged.
    page.get_by_role("combobox").nth(1).click(force=True)
    page.get_by_title("system/cpu_utilization_percentage").last.hover()
    wanted = page.get_by_title("test_accuracy").last
    for _ in range(40):  # to the end of the list, which may still be unfolding
        if wanted.is_visible():
            break
        page.mouse.wheel(0, 250)
        page.wait_for_timeout(250)
    wanted.click()
    page.mouse.wheel(0, -500)
    page.get_by_title("system/cpu_utilization_percentage").last.click()  # not that one
    page.keyboard.press("Escape")

    axes = page.locator(f"{CHART} .axis-title")
    expect(axes.filter(has_text="optimizer.lr")).to_be_visible()
    expect(axes.filter(has_text="test_accuracy")).to_be_visible()
    for run in ui.children:
        expect(page.get_by_role("link", name=run.info.run_id)).to_be_attached()
    keep(page, "compare")


def test_a_sweeps_jobs_have_a_curve_each_in_the_chart_view(ui: Ui, page: Page) -> None:
    page.goto(experiment(ui, compareRunsMode="CHART"))
    sweep = page.get_by_role("gridcell").filter(has_text="sweep-train")
    sweep.get_by_role("button").first.click()  # opens it
    page.get_by_placeholder("Search metric charts").fill("test_accuracy")

    expect(page.locator(f"{CHART} .scatterlayer path.point")).to_have_count(4 * EPOCHS)
    for run in ui.children:
        expect(page.get_by_role("link", name=run.info.run_name).first).to_be_visible()
    keep(page, "sweep")


def test_the_best_jobs_model_is_registered_with_its_alias(ui: Ui, page: Page) -> None:
    page.goto(f"{ui.url}/#/models/digits")

    expect(page.get_by_text("Version 1").first).to_be_visible()
    expect(page.get_by_text("best").first).to_be_visible()
    best = max(ui.children, key=lambda run: run.data.metrics["test_accuracy"])
    accuracy = best.data.metrics["test_accuracy"]
    chosen = ui.client.get_run(ui.client.get_model_version_by_alias("digits", "best").run_id)
    assert chosen.data.metrics["test_accuracy"] == accuracy
    keep(page, "registered")
