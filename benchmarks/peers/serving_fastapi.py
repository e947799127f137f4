"""FastAPI as its tutorial has it, with a typed body: python serving_fastapi.py BUNDLE PORT."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import create_model
from serving_row import RowModel


def main(bundle: str, port: int) -> None:
    model = RowModel(bundle)
    columns = model.columns.values()
    types: dict[str, Any] = {c.name: (list[str] | None if c.expects == "list" else str | None, None) for c in columns}
    Row = create_model("Row", **types)
    app = FastAPI()

    @app.post("/predict")
    async def predict(row: Row) -> dict[str, float]:
        return model(row.model_dump())

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
