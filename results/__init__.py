"""From metrics.json to tables and pictures.

Enters: a runs folder, with the plan of a sweep, the runs' metrics.json and the small samples.npz
    that
evaluation leaves. Leaves: Tables 1 and 2 as text, Markdown and CSV beside the published numbers,
and the figures. Nothing here trains, measures or guesses: a run that is missing is refused or shown
as missing.
"""
