"""One HTML page about a dataset or a plan: figures, charts, and frames of sampled packs."""

from spacepatch.report.dataset import report_dataset
from spacepatch.report.page import check_page, write_page
from spacepatch.report.planned import report_plan

__all__ = ["check_page", "report_dataset", "report_plan", "write_page"]
