# ruff: noqa: E501 - a row is a line
"""The fault matrix: for each fault, the tests that cover it, or the reason why it, or a part of it, is not run."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    fault: str
    tests: tuple[str, ...] = ()
    not_run: str = ""


def of(folder: str, **files: str) -> tuple[str, ...]:
    """`of("crash", test_x="a b")`: tests/crash/test_x.py::test_a and ::test_b."""
    return tuple(f"tests/{folder}/{file}.py::test_{name}" for file, names in files.items() for name in names.split())


SWEEP = of(
    "crash",
    test_kill_sweep="a_death_at_every_point_loses_nothing deaths_at_points_of_all_scenes_drawn_by_chance_lose_nothing",
)
INTERLEAVINGS = of(
    "crash",
    test_interleavings="an_operation_of_another_process_at_any_call_or_store_does_no_harm"
    " an_operation_at_every_call_and_every_store_does_no_harm",
)
ERRORS = of(
    "crash",
    test_error_sweep="a_call_that_fails_refuses_what_it_was_for_and_leaves_nothing_behind"
    " faults_drawn_from_all_calls_there_are_do_no_harm",
)
HOSTILE = of("crash", test_hostile_bytes="hostile_bytes_give_what_was_appended_or_a_typed_error")
CUT = of("crash", test_real_cut="what_was_synced_survives_the_cut_of_a_real_file_system")
CUTS = of("crash", test_power_cut="power_cuts")
STRESS = of("processes", test_stress="writers_followers_a_keeper_and_a_monitor_are_killed_at_random")

ROWS: dict[str, Row] = {
    "K1": Row("SIGKILL of one process", SWEEP + STRESS + of("crash", test_kills_under_load="one_of_four_writers_is_killed_again_and_again")),
    "K2": Row("SIGKILL of all", of("crash", test_kills_under_load="all_writers_are_killed_at_once_and_nothing_has_to_be_recovered")),
    "K3": Row("SIGKILL inside a write", SWEEP, "the harness tears the write: that the kernel cuts a long one short is not arranged"),
    "K4": Row("OOM kill", of("crash", test_out_of_memory="a_writer_that_the_kernel_kills_for_its_memory_loses_nothing"), "only where a memory cgroup can be made"),
    "K5": Row("SIGTERM, a handler that raises, Ctrl-C", of("crash", test_interrupts="no_interrupt_leaves_a_lock_held_or_an_entry_doubled an_interrupt_neither_loses_nor_doubles_what_is_buffered an_interrupted_opening_or_recovery_is_as_if_it_had_not_been")),
    "K6": Row("the holder is stopped", of("processes", test_lock_holders="others_wait_for_a_stopped_holder_and_go_on_when_it_does a_timeout_raises_busy_while_the_holder_stands_inside_and_harms_nothing") + of("crash", test_stopped_holders="a_writer_that_stands_still_at_any_call_harms_nobody"), "a holder that is not in an append, but rotates or opens the log, is not named"),
    "K7": Row("any exception in a caller's code", of("crash", test_interrupts="any_exception_out_of_a_batchs_source_leaves_the_lock_free")),
    "F1": Row("fork while a thread holds the lock", of("processes", test_lock_holders="a_child_forked_in_the_middle_of_an_append_waits_for_it_and_appends an_idle_forked_child_does_not_keep_its_killed_parents_lock_or_slot a_fork_in_the_middle_of_a_sync_is_no_obstacle_to_either_side")),
    "F2": Row("subprocess, exec, spawn, forkserver", of("processes", test_odd_machines="a_started_process_has_none_of_our_files a_program_has_none_of_our_files_though_it_inherits_what_it_can a_program_that_takes_over_a_process_keeps_neither_its_lock_nor_its_slot")),
    "F3": Row("64 threads in several processes", of("processes", test_many_writers="sixty_four_threads_in_several_processes")),
    "P1": Row("power cut: bytes", CUTS),
    "P2": Row("power cut: directory entries", CUTS),
    "P3": Row("power cut of a real file system", CUT, "where there are root, a loop device, and mkfs for ext4, XFS and Btrfs; a device that reorders or loses what it took would take a device mapper"),
    "P4": Row("power cut in a recovery", of("crash", test_power_cut="power_cuts_in_a_recovery")),
    "P5": Row("power cut in NORMAL and NONE", CUTS + CUT),
    "E1": Row("a sync fails", ERRORS + of("processes", test_durability="a_failed_sync_is_seen_by_those_who_wait_those_who_come_and_the_newcomer")),
    "E2": Row("a write fails or is short", ERRORS + of("crash", test_error_sweep="a_write_that_keeps_failing_is_refused_each_time_and_works_again_afterwards from_some_moment_on_no_change_succeeds_and_nothing_that_was_acknowledged_is_lost", test_no_room="a_full_disk_refuses_appends_until_there_is_room a_file_size_limit_is_a_full_log_until_it_is_lifted")),
    "E3": Row("a rotation fails", ERRORS + of("crash", test_no_room="a_rotation_without_descriptors_is_refused_and_harms_nothing")),
    "E4": Row("a read fails", ERRORS + of("crash", test_error_sweep="a_segment_that_cannot_be_read_is_an_error_and_the_others_can"), "not on a disk that fails by itself, which takes FUSE or a device mapper"),
    "E5": Row("a slow disk", of("processes", test_odd_machines="appends_and_rotations_go_on_while_the_disk_takes_its_time") + of("write", test_sync_modes="one_sync_makes_the_batches_of_all_who_wait_durable")),
    "E6": Row("the device dies", of("processes", test_odd_machines="all_writers_stop_when_the_disk_dies_and_nothing_acknowledged_is_lost") + CUT + of("crash", test_real_cut="a_checkpoint_on_a_device_that_dies_is_refused_or_survives")),
    "E7": Row("no room for a control block", of("crash", test_no_room="a_log_that_a_full_disk_has_no_room_for_is_refused_and_can_be_made_later")),
    "E8": Row("a store into a mapped segment cannot be made", of("write", test_mapped="without_room_it_is_refused_and_goes_on_when_there_is a_write_that_fails_beside_it_does_not_shorten_the_file a_segment_that_somebody_has_cut_off_is_seen_at_the_next_look the_price_whoever_cuts_it_off_meanwhile_kills_the_process") + of("crash", test_mapped_disks="a_disk_that_fills_up_kills_nobody_where_stores_are_allowed where_they_are_refused_a_full_disk_would_kill", test_power_cut="power_cuts_in_the_middle_of_stores"), "a real disk needs root, and mkfs for ext4, XFS and Btrfs"),
    "C1": Row("the control block is damaged", HOSTILE + of("opening", test_control_damage="a_spoilt_block_loses_nothing random_blocks_lose_nothing a_flipped_byte_in_any_word_loses_nothing an_old_copy_of_the_block_loses_nothing another_logs_block_loses_nothing") + of("processes", test_replaced_files="a_truncated_control_block_kills_nobody")),
    "C2": Row("killed between two stores", of("crash", test_kill_sweep="a_death_at_every_point_loses_nothing the_stores_of_an_append_are_among_the_points") + of("shared", test_control="a_reader_beside_a_publisher_never_sees_a_mixture"), "stores out of order do not happen on x86-64; no other processor is tested"),
    "C3": Row("a boot", of("processes", test_odd_machines="after_a_boot_with_a_younger_clock_the_log_is_read_anew_and_waits_for_nothing") + of("opening", test_control_damage="a_block_of_another_boot_is_rebuilt")),
    "C4": Row("the clock lies", of("processes", test_odd_machines="order_is_by_lsn_whatever_the_clocks_say")),
    "C5": Row("the same process id twice", of("processes", test_odd_machines="processes_of_one_pid_are_told_apart_by_their_locks writers_in_two_containers_are_both_pid_1")),
    "S1": Row("segments are damaged", HOSTILE + of("read", test_damage="every_flipped_byte_is_found_and_nothing_else_is_read a_log_cut_at_every_byte_is_read_up_to_there a_missing_segment_in_the_middle_is_damage_not_the_end segments_that_change_places_are_damage a_mangled_log_gives_a_prefix_or_a_named_damage")),
    "S2": Row("hostile sizes and counts", HOSTILE + of("shared", test_catalog="too_many_segments_are_refused") + of("opening", test_decisions="salvage_of_a_segment_full_of_hostile_markers_is_refused_or_done_but_typed")),
    "S3": Row("hostile places", of("write", test_hostile_places="what_was_planted_before_the_first_opening what_took_the_place_of_a_file_of_a_closed_log what_takes_the_place_of_a_file_while_a_writer_has_the_log_open")),
    "S4": Row("another user", of("write", test_hostile_places="another_user_can_at_most_read_and_holds_nobody_up"), "skipped unless run by root"),
    "S5": Row("readers beside rotation, retention and recovery", STRESS + of("read", test_follow="a_follower_crosses_a_rotation_without_a_gap a_follower_lives_through_a_recovery")),
    "S6": Row("hostile clients of the exporter", of("cli", test_export="what_is_served silent_clients_do_not_keep_others_out_for_ever"), "10,000 connections are not made"),
    "S7": Row("another process appends, rotates, prunes, opens, forks, ... in the middle of any operation", INTERLEAVINGS, "the other's whole operation, some two deep; not every order of single steps"),
    "N1": Row("a consumer is killed, or its group loses a member", of("consume", test_faults="a_kill_at_any_call_loses_no_commit_and_skips_no_entry", test_group="whoever_is_killed_each_entry_is_handled_by_one_member_at_a_time_and_in_order a_part_is_taken_over_at_once", test_exactly_once="an_effect_that_commits_with_its_lsn_happens_once_whatever_is_killed")),
    "N2": Row("a commit fails, or its power is cut", CUTS + of("consume", test_faults="an_error_of_any_call_is_one_of_walpools_and_harms_nothing", test_cursor="a_commit_whose_sync_fails_is_none_and_the_next_one_makes_another_file")),
    "N3": Row("a cursor's file is damaged", HOSTILE + of("consume", test_cursor="a_damaged_file_is_an_error_that_names_the_way_out_and_keeps_the_log a_position_that_the_log_never_had_is_no_position")),
    "R1": Row("files are removed or replaced", of("processes", test_replaced_files="a_writer_notices_soon_and_a_newcomer_is_refused_until_it_has_closed a_rotation_notices_at_once")),
    "R2": Row("network file systems", of("system", test_filesystems="a_writer_on_a_network_file_system_is_refused_and_told_what_to_do a_local_or_an_unknown_file_system_passes"), "with a fake of the system's answer: none is mounted"),
    "L1": Row("contention", of("processes", test_odd_machines="none_of_eight_writers_that_press_for_the_lock_starves"), "how fair it is, the benchmark measures: it takes a minute and a quiet machine"),
    "L2": Row("a day of everything", STRESS, "a test runs for seconds; tests.processes.stress.prove runs as many rounds as it is told"),
    "L3": Row("threads of one writer in any order of their calls and mutexes", of("crash", test_interleavings="threads_of_one_writer_that_take_turns_do_no_harm"), "drawn, not every order; not between two bytecodes"),
}  # fmt: skip
