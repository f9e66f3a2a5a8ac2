from tests.runs import conftest as of_runs

corpus = of_runs.corpus
