"""How often the letters of a table are wrong, and how often they see two points.

    python benchmarks/ties_power.py   # writes ties_power.json beside it

Tables of 2, 4 and 8 rows on 4 and 6 domains and on 22, which is five datasets: a domain
has an accuracy of 60 to 90 %, a method a deviation of its own in each domain (standard
deviation 0.5 points), a trial 2,000 images; three trials. `wrong` is the share of
tables of equal methods with some pair apart, `power` the share in which a row that is
two points better than the others is told apart from the second.
"""

import numpy as np
from common import options, report

from domainbed.tables.ties import LEVEL, p_values

ROWS, DOMAINS = (2, 4, 8), (4, 6, 22)
IMAGES, TRIALS, POINTS, OWN = 2000, 3, 0.02, 0.005


def table(r: np.random.Generator, n_domains: int, n_rows: int, gain: float):
    """Accuracies (domains, rows), the first row's higher by `gain`."""
    p = r.uniform(0.6, 0.9, (n_domains, 1)) + r.normal(0, OWN, (n_domains, n_rows))
    p[:, 0] += gain
    return (r.binomial(IMAGES, p, (TRIALS, *p.shape)) / IMAGES).mean(axis=0)


def main() -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--tables", type=int, default=1000)
    args = parser.parse_args()
    result = {}
    for n_domains in DOMAINS:
        for n_rows in ROWS:
            r = np.random.default_rng(0)
            wrong = power = 0
            for _ in range(args.tables):
                equal = table(r, n_domains, n_rows, 0)
                better = table(r, n_domains, n_rows, POINTS)
                even = np.ones(n_domains)
                wrong += (p_values(equal, even) <= LEVEL).any()
                power += p_values(better, even)[0, 1] <= LEVEL
            shares = {"wrong": wrong / args.tables, "power": power / args.tables}
            result[f"{n_domains} domains, {n_rows} rows"] = shares
    about = {"tables": args.tables, "images": IMAGES, "trials": TRIALS}
    report(about | {"points": 100 * POINTS, "shares": result}, args.output)


if __name__ == "__main__":
    main()
