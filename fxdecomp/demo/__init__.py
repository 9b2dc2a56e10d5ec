"""The demo: EasyOCR's English line recogniser, compressed, exported, judged on rendered text and timed.

Needs the extra `demo`. It is also the worked example of how a task's own quality is measured around
`transform`: `lines` makes inputs whose truth is known, `judging` turns a model's output into a score.
"""

from fxdecomp.demo.running import DEMO_POLICY, DemoResult, run_demo

__all__ = ["DEMO_POLICY", "DemoResult", "run_demo"]
