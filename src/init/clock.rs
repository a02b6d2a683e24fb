//! Times as text, for log lines: RFC 3339 in UTC with nanoseconds, `2026-11-23T20:13:05.000000001Z`.
//!
//! Algorithm: days to civil date as published by Howard Hinnant ("chrono-Compatible Low-Level Date Algorithms", `civil_from_days`),
//! integers only. A date library would bring an allocator and tables into a program whose point is to be small.

/// Bytes of a formatted time.
pub const TIME_LEN: usize = 30;

/// The time `seconds` and `nanos` after 1970. Years before 0 or past 9999 do not occur on a running machine and are not rendered right.
#[must_use]
pub fn rfc3339(seconds: i64, nanos: u32) -> [u8; TIME_LEN] {
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u64);
    let (year, month, day) = civil_from_days(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text, 0, 4, year);
    digits(&mut text, 5, 2, month);
    digits(&mut text, 8, 2, day);
    digits(&mut text, 11, 2, second_of_day / 3600);
    digits(&mut text, 14, 2, second_of_day / 60 % 60);
    digits(&mut text, 17, 2, second_of_day % 60);
    digits(&mut text, 20, 9, u64::from(nanos));
    text
}

fn civil_from_days(days: i64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year; an era is 400 years.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as u64, month as u64, day as u64)
}

fn digits(text: &mut [u8; TIME_LEN], at: usize, width: usize, mut value: u64) {
    for place in text.iter_mut().skip(at).take(width).rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_read_as_a_date_library_reads_them() {
        for (seconds, nanos) in
            [(0, 0), (951_782_399, 1), (951_782_400, 999_999_999), (1_795_464_785, 42), (4_107_542_399, 0)]
        {
            let ours = String::from_utf8(rfc3339(seconds, nanos).to_vec()).unwrap();
            let theirs = jiff::Timestamp::new(seconds, nanos as i32).unwrap();
            assert_eq!(ours.parse::<jiff::Timestamp>().unwrap(), theirs);
        }
    }
}
