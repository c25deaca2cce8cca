"""`python -m jobs` is `maskrcnn`: what a job on a cluster runs, with the code that was sent along."""

from jobs.main import app

if __name__ == "__main__":
    app(prog_name="maskrcnn")
