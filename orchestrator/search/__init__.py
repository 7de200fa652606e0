"""What a sweep tries, which trials it stops, and what it has found; knows neither Ray nor MLflow.

Everything here is a function of the sweep's settings and of the files in its folder, so that a search goes on anywhere.
"""
