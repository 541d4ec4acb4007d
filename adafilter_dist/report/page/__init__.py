"""RUN/report.html: a run, or several compared, on one page that needs no network.

What is measured is in `evaluate`; tables on the console and files of figures are beside this
folder.
"""
