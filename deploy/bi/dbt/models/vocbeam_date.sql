select date as date_day
from {{ source('vocbeam', 'calendar_date') }}
