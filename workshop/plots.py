"""Figures that a projector, a colour-blind reader and a screen reader can take in."""
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image

from workshop.storms import DATA

# Okabe and Ito's palette (2008), told apart with every common colour blindness, in print and on a projector.
BLUE, ORANGE, GREEN, RED, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#000000"
WIND_COLOURS = ("#B8C4D0", SKY, ORANGE, RED)  # depression, tropical storm, hurricane, major hurricane


def use_style():
    """Use the course's figure style for every figure from here on."""
    plt.style.use(Path(__file__).with_name("course.mplstyle"))


def show(figure, alt: str) -> Image:
    """Return the figure as a picture that carries `alt`, the text for those who cannot see it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    return Image(picture.getvalue(), alt=alt, metadata={"alt": alt})


def basin_map(axes, west=-100, east=0, south=5, north=60):
    """Draw the coast between the given degrees east and north on `axes`, with labelled axes."""
    coast = pd.read_csv(DATA / "coastline.csv")  # an empty row between two lines
    axes.plot(coast.longitude, coast.latitude, color="#7F7F7F", linewidth=0.8, zorder=1)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude (°E)", ylabel="latitude (°N)")
    axes.set_aspect(1 / np.cos(np.radians((south + north) / 2)))
    return axes


def draw_track(axes, track):
    """Draw one storm's track on `axes`, its records coloured by the strength of the wind."""
    axes.plot(track.longitude, track.latitude, color="#555555", linewidth=1, zorder=2)
    colour = np.array(WIND_COLOURS)[np.digitize(track.wind_kt, (34, 64, 96))]
    axes.scatter(track.longitude, track.latitude, c=colour, s=28, zorder=3, edgecolor="#333333", lw=0.4)


def wind_legend(axes, **where):
    """Explain the colours of `draw_track`."""
    words = "below 34 kt", "34–63 kt: tropical storm", "64–95 kt: hurricane", "96 kt on: major hurricane"
    for colour, word in zip(WIND_COLOURS, words):
        axes.scatter([], [], c=colour, label=word, edgecolor="#333333", linewidth=0.4)
    axes.legend(**where)
