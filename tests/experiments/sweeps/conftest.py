from tests.launch.runs import conftest as of_runs

corpus = of_runs.corpus
