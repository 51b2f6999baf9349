"""From metrics.json to tables and figures.

Enters: a runs folder, with the plan of a sweep, the runs' metrics.json and the small samples.npz
that evaluation leaves. Leaves: Tables 1 and 2 as text, Markdown, CSV and LaTeX beside the published
numbers, figures and a report. Nothing here trains, measures or guesses: a run that is missing is
refused or shown as missing.
"""
