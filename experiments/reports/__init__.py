"""The parts of launch.report: study.py (what is said of one),
blocks.py (as Markdown and HTML), svg.py, page.py.
"""
