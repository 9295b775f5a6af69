"""The rounds of a search, and the merge of its shards' answers.

A search by text runs in two rounds. In the first, every shard ranks its nearest rows and tells
their scores without frames. One cut over all shards leaves the candidates, so that the result does
not depend on how the videos are divided. In the second round, each shard scores its own candidates.
Calibration, confidences, groups, deduplication and paging see the merged ranking alone.

The number of the shard is part of every row and every number of a video here. Of equal scores, the
row added first wins in one shard; across shards, the lower id does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search.confidence import confidences, shares, tail, why_unknown
from xclip_deploy.runtime.search.filling import Found, Stages, num_candidates, rows_each
from xclip_deploy.runtime.search.gathering import Keeping, cut
from xclip_deploy.runtime.search.grouping import Numbers, best_with_few_each
from xclip_deploy.runtime.search.numbering import (
    SHIFT,
    local,
    nearest_of,
    numbered_found,
    numbered_ranked,
    of_shard,
    own_rows,
)
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.pages import Page, describe
from xclip_deploy.runtime.search.planner import Cost, Plan, Planner
from xclip_deploy.runtime.search.ranked import Query, Ranked
from xclip_deploy.runtime.search.scope import chosen, names_of, scope_name
from xclip_deploy.runtime.search.shard import Shards, ShardSearch, Survey
from xclip_deploy.runtime.search.showing import Shown

_Answer = TypeVar("_Answer")


def search_shards(
    queries: Sequence[Query],
    shards: Shards,
    options: SearchOptions,
    planner: Planner,
    why: str = "",
) -> list[SearchResults]:
    """Search the shards, and return the hits of each query.

    ``why``: what else the results' reason tells: why no GPU holds the gallery.
    All queries have a text, or none has. Raises InvalidArgumentError for a filter that cannot be
    parsed, and GalleryError for a ``within`` that is no video.
    """
    if not queries:
        return []
    surveys = shards.ask(ShardSearch.survey, dict.fromkeys(shards.numbers, ()))
    if not any(survey.num_rows for survey in surveys.values()):
        plan = planner.plan(0, options)
        return [_empty(query, plan) for query in queries]
    return _Rounds(queries, shards, options, planner, surveys, why).run()


class _Rounds:
    """One search that is under way."""

    def __init__(
        self,
        queries: Sequence[Query],
        shards: Shards,
        options: SearchOptions,
        planner: Planner,
        surveys: dict[int, Survey],
        why: str,
    ) -> None:
        self._why = why
        self._queries = queries
        self._shards = shards
        self._options = options
        self._planner = planner
        self._surveys = surveys
        self._is_one = len(shards.numbers) == 1
        self._is_grouped = any(survey.is_grouped for survey in surveys.values())
        self._num_videos = sum(survey.num_videos for survey in surveys.values())
        self._per_candidate = max(survey.per_candidate for survey in surveys.values())
        self._unit = "segment" if self._is_grouped else "video"

    def run(self) -> list[SearchResults]:
        """Search, and return the hits of each query."""
        options = self._options
        num_rows = {number: survey.num_rows for number, survey in self._surveys.items()}
        if options.within is not None:
            found = self._all(ShardSearch.find, *names_of(options.within))
            video_id = chosen(options.within, list(found.values()), self._num_videos)
            self._shards.limit(replace(options, within=video_id))
            num_rows = self._all(ShardSearch.num_rows)
        total = sum(num_rows.values())
        if self._queries[0].text is None:
            return [self._by_video(number, total) for number in range(len(self._queries))]
        costs = {number: survey.cost(num_rows[number]) for number, survey in self._surveys.items()}
        slowest = max(costs.values(), key=lambda cost: cost.seconds)
        is_measured = all(cost.is_measured for cost in costs.values())
        cost = replace(slowest, is_measured=is_measured)
        plan = self._planner.plan(total, options, f"{self._unit}s", cost)
        if plan.method == "exact":
            ranked = self._exact(costs)
        else:
            started_s = time.perf_counter()
            ranked, place = self._two_stage()
            self._planner.learn_two_stage(len(self._queries), time.perf_counter() - started_s)
            plan = plan.because(place)
        plan = plan.because(self._why)
        return [self._finish(n, found, scored, plan) for n, (found, scored) in enumerate(ranked)]

    # -- the stages ------------------------------------------------------------------------

    def _two_stage(self) -> tuple[list[tuple[Ranked, int]], str]:
        """Return the candidates of each query, how many there were, and the first stage's place."""
        count = num_candidates(self._options, is_grouped=self._is_grouped)
        numbers = range(len(self._queries))
        nearest = self._nearest(numbers, count * self._per_candidate, None)
        found = []
        for number, first in zip(numbers, nearest, strict=True):
            ranked = self._run(self._steps(number), count, first)
            found.append((self._sorted(ranked), len(ranked)))
        return found, nearest[0].place

    def _steps(self, number: int) -> Stages:
        """Return the stages of a search by text."""

        def candidates(found: Found, count: int) -> Rows:
            # Ascending rows: of equal scores the video added first wins, as in an exact search.
            found = found.take(np.argsort(found.rows))
            if len(found.rows) <= count:
                return found.rows
            if not self._is_grouped or self._options.group == "moment":
                return found.rows[np.sort(best_first(found.scores, count))]
            few = rows_each(self._options)
            best = best_with_few_each(found.scores, found.numbers, count, few)
            return found.rows[np.sort(best)]

        return Stages(
            lambda limit, without: self._nearest([number], limit, without)[0],
            candidates,
            lambda rows: self._score(number, rows),
            self._per_candidate,
        )

    def _nearest(self, numbers: Sequence[int], limit: int, without: Numbers | None) -> list[Found]:
        """Rank the ``limit`` nearest rows of all shards for each query."""
        # One shard has no more rows than candidates where it finds no more.
        scored_from = limit // self._per_candidate if self._is_one else 0
        answers = self._shards.ask(
            ShardSearch.nearest,
            {
                shard: (numbers, limit, of_shard(without, shard), scored_from)
                for shard in self._shards.numbers
            },
        )
        by_query = zip(
            *(numbered_found(answers[shard], shard) for shard in sorted(answers)), strict=True
        )
        return [nearest_of(parts, limit) for parts in by_query]

    def _score(self, number: int, rows: Rows) -> Ranked:
        """Compute the full scores of ``rows``, which ascend."""
        parts = self._divided(rows)
        if not parts:  # nothing was found
            parts = {self._shards.numbers[0]: rows}
        answers = self._shards.ask(
            ShardSearch.score, {shard: (number, part) for shard, part in parts.items()}
        )
        return Ranked.join([self._numbered(answers[shard], shard) for shard in sorted(answers)])

    def _run(self, steps: Stages, count: int, first: Found) -> Ranked:
        options = self._options
        if not self._is_grouped or options.group == "moment":
            return steps.run(count, first)
        # Deduplication drops hits.
        num_videos = options.depth * (1 if options.near_identical is None else 4)
        return steps.fill(count, first, num_videos, self._num_videos)

    def _numbered(self, ranked: Ranked, shard: int) -> Ranked:
        return numbered_ranked(ranked, shard, is_grouped=self._is_grouped)

    def _exact(self, costs: Mapping[int, Cost]) -> list[tuple[Ranked, int]]:
        keeping = Keeping.of(self._options, is_grouped=self._is_grouped)
        answers = self._shards.ask(
            ShardSearch.exact,
            {shard: (keeping, bool(cost.device_name)) for shard, cost in costs.items()},
        )
        results = []
        for by_shard in zip(*(answers[shard] for shard in sorted(answers)), strict=True):
            scored = sum(count for _, count in by_shard)
            shards = zip(sorted(answers), by_shard, strict=True)
            parts = [self._numbered(found, shard) for shard, (found, _) in shards if len(found)]
            if not parts:
                results.append((Ranked.empty(), scored))
            elif self._is_one:
                results.append((parts[0], scored))
            else:
                results.append((cut(self._sorted(Ranked.join(parts)), keeping), scored))
        return results

    def _by_video(self, number: int, total: int) -> SearchResults:
        options = self._options
        steps = Stages(
            lambda limit, without: self._nearest([number], limit, without)[0],
            lambda found, _count: np.sort(found.rows),
            lambda rows: self._score(number, rows),
            1,
        )
        wanted = num_candidates(options, is_grouped=self._is_grouped)
        wanted = total if options.exact else wanted
        first = steps.nearest(wanted, None)
        ranked = self._sorted(self._run(steps, wanted, first))
        if first.method == "flat":
            plan = Plan("exact", f"one inner product with every {self._unit}")
            plan = plan.because(first.place).because(self._why)
            return self._finish(number, ranked, total, plan)
        reason = f"the {len(ranked)} nearest by the gallery's index, then their cosines"
        plan = Plan("two-stage", reason).because(self._why)
        return self._finish(number, ranked, len(ranked), plan)

    # -- from ranked rows to hits ----------------------------------------------------------

    def _finish(self, number: int, ranked: Ranked, scored: int, plan: Plan) -> SearchResults:
        query, options, note = self._queries[number], self._options, ""
        is_part = options.within is not None or options.span_s != (0.0, None)
        if not len(ranked) and is_part:
            note = f"{scope_name(options)} holds nothing to search"
        if options.query_bank is not None and len(ranked):
            norm, tails = self._calibration(number, ranked)
            if options.has_confidence:
                note = self._add_confidences(number, ranked, tails)
            ranked.scores = (ranked.scores - norm).astype(np.float32)
            ranked = self._sorted(ranked)
        elif options.has_confidence and len(ranked):
            note = self._add_confidences(number, ranked, None)
        if options.min_score is not None:
            ranked = ranked.take(np.flatnonzero(ranked.scores >= options.min_score))
        least = options.min_confidence
        if least is not None and ranked.confidences is not None and len(ranked):
            is_sure = ranked.confidences >= least
            if not is_sure.any():
                best = ranked.confidences.max()
                note = f"nothing is found with a confidence of {least:g}; the best has {best:.2g}"
            ranked = ranked.take(np.flatnonzero(is_sure))
        page = Page.of(ranked, options, lambda rows: self._features(number, rows))
        return SearchResults(
            describe(page, self._shown(number, page), options.offset),
            plan.method,
            scored,
            self._num_videos,
            plan.reason,
            query.truncated_tokens,
            self._num_segments(),
            note,
            query.warnings,
        )

    def _num_segments(self) -> int | None:
        if not self._is_grouped:
            return None
        return sum(survey.num_rows for survey in self._surveys.values())

    def _calibration(self, number: int, ranked: Ranked) -> tuple[Float64Array, Float64Array | None]:
        """Return what the query bank takes from each row's score [n], and its tails [2, n]."""
        bank, has_confidence = self._options.query_bank, self._options.has_confidence
        places = self._places(ranked.rows)
        answers = self._shards.ask(
            ShardSearch.calibrate,
            {
                shard: (number, local(ranked.rows[at]), bank, has_confidence)
                for shard, at in places.items()
            },
        )
        norm = np.empty(len(ranked))
        tails = np.empty((2, len(ranked))) if has_confidence else None
        for shard, (own, own_tails) in answers.items():
            norm[places[shard]] = own
            if tails is not None and own_tails is not None:
                tails[:, places[shard]] = own_tails
        return norm, tails

    def _add_confidences(self, number: int, ranked: Ranked, tails: Float64Array | None) -> str:
        """Add the confidence of each row; return the reason if it cannot be told.

        ``tails``: those of the query bank [2, n]; None without a bank. Raises InvalidArgumentError
        if a least confidence was asked for and none can be told.
        """
        bank, least = self._options.query_bank, self._options.min_confidence
        sizes = {shard: survey.num_rows for shard, survey in self._surveys.items()}
        parts = dict(zip(sizes, shares(list(sizes.values())), strict=True))
        count = sum(parts.values()) if bank is None else len(bank)
        unknown = why_unknown(count, self._unit, has_bank=bank is not None)
        if unknown is not None:
            if least is not None:
                raise InvalidArgumentError(f"min_confidence is {least:g}: {unknown}")
            return unknown
        if tails is None:
            asked = {shard: (number, share) for shard, share in parts.items() if share}
            answers = self._shards.ask(ShardSearch.background, asked)
            tails = tail(np.concatenate([answers[shard] for shard in sorted(answers)]))
        num_searched = sum(self._all(ShardSearch.count).values())
        ranked.confidences = confidences(ranked.scores, tails, num_searched)
        return ""

    def _features(self, number: int, rows: Rows) -> VideoFeatures:
        places = self._places(rows)
        answers = self._shards.ask(
            ShardSearch.features,
            {shard: (number, local(rows[at])) for shard, at in places.items()},
        )
        if len(answers) == 1:
            return next(iter(answers.values()))
        joined = VideoFeatures.concatenate([answers[shard] for shard in places])
        return joined[np.argsort(np.concatenate(list(places.values())), kind="stable")]

    def _shown(self, number: int, page: Page) -> Shown:
        """Read what the hits of a page show, each where it is."""
        wanted = (page.hits.rows, page.other_rows, page.dropped_rows)
        refines = self._is_grouped and self._options.refine
        all_rows = np.concatenate(wanted)
        answers = self._shards.ask(
            ShardSearch.show,
            {
                shard: (number, *(local(own_rows(rows, shard)) for rows in wanted), refines)
                for shard in self._divided(np.sort(all_rows))
            },
        )
        merged = Shown({}, {}, {}, {}, {})
        for shard, part in answers.items():
            for target, values in zip(vars(merged).values(), vars(part).values(), strict=True):
                target.update({row + (shard << SHIFT): value for row, value in values.items()})
        return merged

    # -- rows and shards -------------------------------------------------------------------

    def _all(self, method: Callable[..., _Answer], *arguments: object) -> dict[int, _Answer]:
        """Ask every shard the same."""
        return self._shards.ask(method, dict.fromkeys(self._shards.numbers, arguments))

    def _divided(self, rows: Rows) -> dict[int, Rows]:
        """Return the rows of each shard, as the shard counts them, in their order."""
        return {shard: local(rows[at]) for shard, at in self._places(rows).items()}

    def _places(self, rows: Rows) -> dict[int, npt.NDArray[np.intp]]:
        """Return the places of each shard's rows."""
        if self._is_one:
            return {self._shards.numbers[0]: np.arange(len(rows))} if len(rows) else {}
        shards = rows >> SHIFT
        return {int(shard): np.flatnonzero(shards == shard) for shard in np.unique(shards)}

    def _sorted(self, ranked: Ranked) -> Ranked:
        """Return the rows best first; equal scores of several shards follow their ids."""
        if not self._is_one and len(ranked):
            _, inverse, counts = np.unique(ranked.scores, return_inverse=True, return_counts=True)
            tied = np.flatnonzero(counts[inverse] > 1)
            ranked.ties = np.zeros(len(ranked), np.int64)
            places = self._places(ranked.rows[tied])
            answers = self._shards.ask(
                ShardSearch.names,
                {shard: (local(ranked.rows[tied[at]]),) for shard, at in places.items()},
            )
            keys = [
                (*key, int(place))
                for shard, names in answers.items()
                for key, place in zip(names, tied[places[shard]], strict=True)
            ]
            for order, (_, _, place) in enumerate(sorted(keys)):
                ranked.ties[place] = order
        return ranked.sorted()


def _empty(query: Query, plan: Plan) -> SearchResults:
    return SearchResults(
        (),
        plan.method,
        0,
        0,
        "the gallery is empty",
        query.truncated_tokens,
        warnings=query.warnings,
    )
