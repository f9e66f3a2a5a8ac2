"""The parts of launch.report: study.py (the content for one study), blocks.py (Markdown and HTML),
svg.py (figures), page.py (all files).
"""
