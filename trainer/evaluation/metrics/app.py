"""The web form of a metric's Space."""

import os

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(os.environ["SPACE_ID"]))  # set by the Hub: "user/text_qa"
