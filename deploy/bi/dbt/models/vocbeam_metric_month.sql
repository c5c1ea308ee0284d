select period_start, stage, department, metric, unit, n, total, numerator, denominator,
       metric || '/' || unit || '/' || stage || '/' || department || '/' || cast(period_start as varchar)
           as metric_month
from {{ source('vocbeam', 'metric_by_month') }}
where suppressed = 0
