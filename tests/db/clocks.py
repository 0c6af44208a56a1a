"""Moving a database's clock, by putting another function in the place of the one that tells it."""

from __future__ import annotations

import time

import sqlalchemy as sa

_JULIAN_1970 = 2440587.5
_FAKE = """
CREATE SCHEMA fake;
CREATE TABLE fake.step (seconds double precision);
INSERT INTO fake.step VALUES (0);
CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
  'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM fake.step))'
"""


class SqliteClock:
    """The clock of all connections that a store makes after this."""

    def __init__(self, store) -> None:
        self.ahead_s = 0.0
        for engine in (store._engines.write, store._engines.read):
            sa.event.listen(engine, "connect", self._replace)
            engine.dispose()

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back by a negative number."""
        self.ahead_s += seconds

    def _replace(self, connection, record) -> None:
        connection.create_function("julianday", 1, self._julianday)

    def _julianday(self, when: str) -> float:
        assert when == "now"
        return _JULIAN_1970 + (time.time() + self.ahead_s) / 86400


class PostgresClock:
    """The clock of a whole database."""

    def __init__(self, store) -> None:
        self._engine = store._engines.write
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_FAKE)
            name = connection.exec_driver_sql("SELECT current_database()").scalar()
            # A schema that is named before pg_catalog is looked into before it.
            path = "fake, pg_catalog, public"
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET search_path = {path}")
        for engine in (store._engines.write, store._engines.read):
            engine.dispose()

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back by a negative number."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE fake.step SET seconds = seconds + :by"), {"by": seconds}
            )
